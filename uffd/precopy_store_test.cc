#include "uffd/precopy_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "dirtytrack/memfd.h"
#include "gtest/gtest.h"
#include "uffd/install_strategy.h"
#include "uffd/kernel_guest.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// Two regions of 100 pages in one file, the second at its beginning.
class PrecopyStoreTest : public testing::Test {
 protected:
  explicit PrecopyStoreTest(uint64_t features = 0) {
    uffd_.SetFeatures(features);
    uffd_.Map(HostAddress(0x100000000), size_, fd_.get(), size_.value());
    uffd_.Map(HostAddress(0x200000000), size_, fd_.get(), 0);
    strategies_ = StrategiesFor(ram_, uffd_);
  }

  ReceiveResult Data(PageRun run) {
    const std::vector<uint8_t> bytes = PatternOf(run);
    return store_.Store({run, bytes});
  }
  ReceiveResult Zero(PageRun run) { return store_.Store({run, {}}); }

  bool HasPatternAt(uint64_t page) const {
    std::vector<uint8_t> bytes(kPageSize);
    const off_t offset = ((page + 100) % 200) * kPageSize;
    return ::pread(fd_.get(), bytes.data(), kPageSize, offset) ==
               static_cast<ssize_t>(kPageSize) &&
           HasPattern(bytes.data(), PageIndex(page));
  }
  bool HasData(uint64_t page) const { return ram_.HasData(PageIndex(page)); }

  const ByteCount size_ = BytesIn(PageCount(100));
  const UniqueFd fd_ = *CreateMemfd("ram", size_ + size_, 0);
  const DestinationRam ram_ = *DestinationRam::Create(
      LayoutOf({PageCount(100), PageCount(100)}),
      {{HostAddress(0x100000000), fd_.get(), size_.value()},
       {HostAddress(0x200000000), fd_.get(), 0}});
  const std::unique_ptr<PageState> state_ = *PageState::Create(PageCount(200));
  const PageBitmap stale_ = *PageBitmap::Create(PageCount(200));
  SimulatedUffd uffd_;
  InstallStrategies strategies_;
  PrecopyStore store_{&ram_, state_.get(), &strategies_};
};

TEST_F(PrecopyStoreTest, StoresAcrossRegions) {
  const ReceiveResult result = Data(Pages(95, 10));
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.received, PageCount(10));
  for (uint64_t page = 95; page < 105; ++page) {
    EXPECT_TRUE(HasPatternAt(page)) << page;
  }
  EXPECT_FALSE(HasData(94));
  EXPECT_FALSE(HasData(105));
}

TEST_F(PrecopyStoreTest, TheLastContentWins) {
  EXPECT_EQ(Data(Pages(0, 10)).received, PageCount(10));
  EXPECT_EQ(Zero(Pages(0, 4)).received, PageCount(0));
  EXPECT_FALSE(HasData(3));
  EXPECT_TRUE(HasData(4));
  EXPECT_EQ(state_->zero(), PageCount(4));
  EXPECT_EQ(Data(Pages(3, 1)).received, PageCount(0));
  EXPECT_TRUE(HasPatternAt(3));
  EXPECT_FALSE(state_->IsZero(PageIndex(3)));
  EXPECT_EQ(state_->missing(), PageCount(190));
}

TEST_F(PrecopyStoreTest, ZerosReplaceWhatTheVmmHadWritten) {
  ASSERT_EQ(::pwrite(fd_.get(), "ROM", 3, 0), 3);  // page 100
  EXPECT_TRUE(Zero(Pages(0, 200)).status.ok());
  EXPECT_FALSE(HasData(100));
  EXPECT_EQ(state_->missing(), PageCount(0));
}

TEST_F(PrecopyStoreTest, DiscardsStaleRuns) {
  EXPECT_TRUE(Data(Pages(0, 200)).status.ok());
  stale_.view().SetRun(Pages(98, 5));
  stale_.view().SetRun(Pages(150, 1));
  const ReceiveResult result = store_.Discard(stale_.view());
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.removed, PageCount(6));
  for (uint64_t page = 0; page < 200; ++page) {
    const bool stale = stale_.view().Test(PageIndex(page));
    EXPECT_EQ(state_->IsReceived(PageIndex(page)), !stale) << page;
    EXPECT_EQ(HasData(page), !stale) << page;
  }
  EXPECT_EQ(store_.Discard(stale_.view()).removed, PageCount(0));
}

TEST_F(PrecopyStoreTest, DiscardEmptiesWhatWasNeverReceived) {
  ASSERT_EQ(::pwrite(fd_.get(), "ROM", 3, 0), 3);  // page 100
  EXPECT_TRUE(Data(Pages(101, 1)).status.ok());
  EXPECT_TRUE(store_.Discard(stale_.view()).status.ok());
  EXPECT_FALSE(HasData(100));
  EXPECT_TRUE(HasPatternAt(101));
}

TEST_F(PrecopyStoreTest, DiscardForgetsZeros) {
  EXPECT_TRUE(Zero(Pages(0, 200)).status.ok());
  stale_.view().SetRun(Pages(0, 50));
  EXPECT_EQ(store_.Discard(stale_.view()).removed, PageCount(50));
  EXPECT_EQ(state_->zero(), PageCount(150));
}

// Where what the guest cannot see may be stale.
class MinorPrecopyStoreTest : public PrecopyStoreTest {
 protected:
  MinorPrecopyStoreTest() : PrecopyStoreTest(UFFD_FEATURE_MINOR_SHMEM) {}
};

TEST_F(MinorPrecopyStoreTest, StalePagesStayInTheirFile) {
  EXPECT_TRUE(Data(Pages(0, 200)).status.ok());
  stale_.view().SetRun(Pages(98, 5));
  const ReceiveResult result = store_.Discard(stale_.view());
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.removed, PageCount(5));
  EXPECT_EQ(state_->missing(), PageCount(5));
  EXPECT_TRUE(HasPatternAt(100));
}

// What the VMM had in its page tables it would see for ever.
TEST_F(MinorPrecopyStoreTest, TheFirstPageEmptiesAllOthers) {
  ASSERT_EQ(::pwrite(fd_.get(), "ROM", 3, 0), 3);  // page 100
  EXPECT_TRUE(Data(Pages(0, 1)).status.ok());
  EXPECT_FALSE(HasData(100));
}

TEST_F(MinorPrecopyStoreTest, AStalePageIsReplaced) {
  EXPECT_TRUE(Data(Pages(0, 3)).status.ok());
  stale_.view().SetRun(Pages(0, 3));
  EXPECT_TRUE(store_.Discard(stale_.view()).status.ok());
  EXPECT_EQ(Zero(Pages(0, 1)).received, PageCount(1));
  EXPECT_EQ(Data(Pages(1, 1)).received, PageCount(1));
  EXPECT_FALSE(HasData(0));
  EXPECT_TRUE(HasPatternAt(1));
}

TEST_F(PrecopyStoreTest, TellsTheOperatorWhatFailed) {
  EXPECT_TRUE(Data(Pages(0, 1)).status.ok());
  ASSERT_EQ(::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  ReceiveResult result = Data(Pages(0, 4));
  EXPECT_FALSE(result.status.ok());
  EXPECT_NE(result.status.message().find("\"ram0\""), absl::string_view::npos);
  EXPECT_EQ(state_->missing(), PageCount(199));
  // Perhaps punched halfway: not to be relied on.
  result = Zero(Pages(0, 4));
  EXPECT_FALSE(result.status.ok());
  EXPECT_EQ(result.removed, PageCount(1));
  EXPECT_EQ(state_->missing(), PageCount(200));
}

}  // namespace
}  // namespace postcopy
