#include "uffd/memory_changes.h"

#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "dirtytrack/memfd.h"
#include "gtest/gtest.h"
#include "uffd/install_strategy.h"
#include "uffd/kernel_guest.h"

namespace postcopy {
namespace {

constexpr HostAddress kSmall{1 << 30};
constexpr HostAddress kHuge{1u << 31};
constexpr HostAddress kElsewhere{0x700000000000};

// Those that a kernel would allow, with `more` than COPY and WAKE.
InstallStrategies StrategiesOf(const DestinationRam& ram, uint64_t more) {
  InstallStrategies strategies;
  for (size_t i = 0; i < ram.region_count(); ++i) {
    const bool huge = ram.region(i).unit > PageCount(1);
    const uint64_t ioctls = uint64_t{1} << _UFFDIO_COPY |
                            uint64_t{1} << _UFFDIO_WAKE |
                            uint64_t{!huge} << _UFFDIO_ZEROPAGE | more;
    strategies.push_back(
        *ChooseInstallStrategy(ram.region(i), {.error = 0, .ioctls = ioctls}));
  }
  return strategies;
}

ByteCount Bytes(uint64_t pages) { return BytesIn(PageCount(pages)); }

// Ten small pages, then three huge ones.
class MemoryChangesTest : public testing::Test {
 protected:
  absl::Status Apply(uint8_t event, HostAddress address, ByteCount length) {
    uffd_msg message = {};
    message.event = event;
    message.arg.remove.start = address.value();
    message.arg.remove.end = (address + length).value();
    return changes_.Apply(message);
  }
  absl::Status ApplyRemap(HostAddress from, HostAddress to, ByteCount length) {
    uffd_msg message = {};
    message.event = UFFD_EVENT_REMAP;
    message.arg.remap.from = from.value();
    message.arg.remap.to = to.value();
    message.arg.remap.len = length.value();
    return changes_.Apply(message);
  }
  uint64_t received() const {
    return (state_->pages() - state_->missing()).value();
  }

  DestinationRam ram_ = *DestinationRam::Create(
      LayoutOf({GuestRegion{MemoryKind::kAnonymous, PageCount(10)},
                GuestRegion{MemoryKind::kHugetlb, PageCount(1536)}}),
      {{kSmall}, {kHuge}});
  const std::unique_ptr<PageState> state_ = *PageState::Create(PageCount(1546));
  const InstallStrategies strategies_ = StrategiesOf(ram_, 0);
  MemoryChanges changes_{&ram_, state_.get(), &strategies_};
};

TEST_F(MemoryChangesTest, RemovedPagesAreZeros) {
  state_->MarkReceived({PageIndex(3), PageCount(1)}, /*is_zero=*/false);
  EXPECT_TRUE(Apply(UFFD_EVENT_REMOVE, kSmall + Bytes(2), Bytes(3)).ok());
  for (const uint64_t page : {2, 3, 4}) {
    EXPECT_TRUE(state_->IsReceived(PageIndex(page)));
    EXPECT_TRUE(state_->IsZero(PageIndex(page)));
  }
  EXPECT_EQ(received(), 3u);
  EXPECT_EQ(changes_.counters().removed_pages, 2u);
  EXPECT_EQ(changes_.counters().removals, 1u);
}

// The kernel punches only what is whole, and says what it was asked for.
TEST_F(MemoryChangesTest, PartsOfHugePagesStay) {
  EXPECT_TRUE(Apply(UFFD_EVENT_REMOVE, kHuge, Bytes(511)).ok());
  EXPECT_TRUE(Apply(UFFD_EVENT_REMOVE, kHuge + Bytes(1), Bytes(1000)).ok());
  EXPECT_EQ(received(), 0u);
  EXPECT_TRUE(Apply(UFFD_EVENT_REMOVE, kHuge + Bytes(1), Bytes(1100)).ok());
  EXPECT_EQ(received(), 512u);
  EXPECT_TRUE(state_->IsReceived(PageIndex(10 + 512)));
  EXPECT_FALSE(state_->IsReceived(PageIndex(10 + 511)));
  EXPECT_FALSE(state_->IsReceived(PageIndex(10 + 1024)));
}

TEST_F(MemoryChangesTest, OtherMemoryIsNobodysBusiness) {
  EXPECT_TRUE(Apply(UFFD_EVENT_REMOVE, kElsewhere, Bytes(3)).ok());
  EXPECT_TRUE(Apply(UFFD_EVENT_UNMAP, kElsewhere, Bytes(3)).ok());
  EXPECT_EQ(received(), 0u);
}

TEST_F(MemoryChangesTest, UnmappedPagesAreNowhere) {
  EXPECT_TRUE(Apply(UFFD_EVENT_UNMAP, kSmall + Bytes(2), Bytes(3)).ok());
  EXPECT_EQ(received(), 3u);
  EXPECT_FALSE(ram_.FirstPiece({PageIndex(2), PageCount(1)}).mapped());
  EXPECT_EQ(ram_.PageAt(kSmall + Bytes(2)), std::nullopt);
}

TEST_F(MemoryChangesTest, MovedPagesTakeThePlaceOfOthers) {
  EXPECT_TRUE(ApplyRemap(kSmall, kSmall + Bytes(8), Bytes(2)).ok());
  EXPECT_EQ(ram_.PageAt(kSmall + Bytes(9)), PageIndex(1));
  EXPECT_EQ(received(), 2u);  // 8 and 9, which are gone
  EXPECT_TRUE(state_->IsReceived(PageIndex(9)));
}

// Four pages of a file in which stale bytes may be.
class MemoryChangesInAFileTest : public testing::Test {
 protected:
  MemoryChangesInAFileTest() {
    const std::vector<uint8_t> bytes(BytesIn(kPages).value(), 0xee);
    EXPECT_EQ(::pwrite(fd_.get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
  }

  // To the first `pages` of them.
  absl::Status Apply(uint8_t event, uint64_t pages) {
    uffd_msg message = {};
    message.event = event;
    message.arg.remove.start = kSmall.value();
    message.arg.remove.end = (kSmall + Bytes(pages)).value();
    return changes_.Apply(message);
  }
  bool HasData(uint64_t page) const { return ram_.HasData(PageIndex(page)); }

  static constexpr PageCount kPages{4};
  const UniqueFd fd_ = *CreateMemfd("ram", BytesIn(kPages), 0);
  DestinationRam ram_ =
      *DestinationRam::Create(LayoutOf({kPages}), {{kSmall, fd_.get(), 0}});
  const std::unique_ptr<PageState> state_ = *PageState::Create(kPages);
  const InstallStrategies strategies_ =
      StrategiesOf(ram_, uint64_t{1} << _UFFDIO_CONTINUE);
  MemoryChanges changes_{&ram_, state_.get(), &strategies_};
};

TEST_F(MemoryChangesInAFileTest, WhatIsStaleThereIsEmptied) {
  state_->MarkReceived({PageIndex(1), PageCount(1)}, /*is_zero=*/false);
  EXPECT_TRUE(Apply(UFFD_EVENT_REMOVE, 3).ok());
  EXPECT_FALSE(HasData(0));
  EXPECT_TRUE(HasData(1));  // the VMM's own
  EXPECT_FALSE(HasData(2));
  EXPECT_TRUE(HasData(3));
  EXPECT_EQ(changes_.counters().removed_pages, 2u);

  ASSERT_EQ(::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_TRUE(absl::IsInternal(Apply(UFFD_EVENT_REMOVE, 4)));
  EXPECT_FALSE(state_->IsReceived(PageIndex(3)));
}

// Its VMM may have mapped the file elsewhere, and be writing there.
TEST_F(MemoryChangesInAFileTest, WhatIsUnmappedIsLeftAlone) {
  EXPECT_TRUE(Apply(UFFD_EVENT_UNMAP, 1).ok());
  EXPECT_TRUE(HasData(0));
  EXPECT_TRUE(state_->IsReceived(PageIndex(0)));
}

}  // namespace
}  // namespace postcopy
