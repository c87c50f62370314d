#include "dirtytrack/vhost_log.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using absl::StatusCode;
using Set = std::set<uint64_t>;

constexpr uint64_t kPages = 300;

RamLayout Layout() {
  return *RamLayout::Create(
      {{.name = "ram", .length = ByteCount(kPages * kPageSize)}});
}

Slot SlotAt(SlotId id, uint64_t gpa_page, uint64_t ram_page, uint64_t pages) {
  return {.id = id,
          .guest_physical_address = gpa_page * kPageSize,
          .start = RamOffset(ram_page * kPageSize),
          .length = ByteCount(pages * kPageSize)};
}

// Low RAM, a hole, high RAM at no multiple of 64 pages; and an alias of the
// beginning in the address space of system management mode.
std::vector<Slot> Slots() {
  return {SlotAt({0, 0}, 0, 0, 100), SlotAt({0, 1}, 1003, 100, 200),
          SlotAt({1, 0}, 5000, 0, 100)};
}

class VhostLogTest : public testing::Test {
 protected:
  VhostLogTest()
      : log_(*VhostLog::Create(Layout(), Slots())),
        back_end_(*SharedMapping::Map(log_->fd(), ByteCount(0), log_->bytes(),
                                      SharedMapping::Access::kReadWrite)),
        into_(*PageBitmap::Create(PageCount(kPages))) {
    EXPECT_TRUE(log_->Start().ok());
  }

  // As a back-end does: no more than an atomic OR.
  void Log(uint64_t gpa_page) {
    auto* words = reinterpret_cast<std::atomic<uint64_t>*>(back_end_.data());
    words[gpa_page / 64].fetch_or(uint64_t{1} << gpa_page % 64);
  }

  Set Collect() {
    into_.Reset();
    const absl::StatusOr<PageCount> set = log_->Collect(into_.view());
    EXPECT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(*set, into_.view().Count());
    Set pages;
    for (uint64_t page = 0; page < kPages; ++page) {
      if (into_.view().Test(PageIndex(page))) pages.insert(page);
    }
    return pages;
  }

  const std::unique_ptr<VhostLog> log_;
  const SharedMapping back_end_;
  PageBitmap into_;
};

TEST_F(VhostLogTest, CoversGuestPhysicalMemory) {
  EXPECT_EQ(log_->bytes(), ByteCount((1203 + 63) / 64 * 8));
}

TEST_F(VhostLogTest, GuestPhysicalPagesBecomeRamPages) {
  for (uint64_t page : {0, 99, 100, 1002, 1003, 1004, 1202}) Log(page);
  EXPECT_EQ(Collect(), (Set{0, 99, 100, 101, 299})) << "holes are no RAM";
  EXPECT_EQ(Collect(), Set());
  Log(99);
  EXPECT_EQ(Collect(), Set{99});
}

TEST_F(VhostLogTest, ClearTakesWhatIsAboutToBeRead) {
  for (uint64_t page : {10, 11, 1003, 1010}) Log(page);
  const PageBitmap pages = *PageBitmap::Create(PageCount(kPages));
  for (uint64_t page : {10, 100, 107, 200}) {
    pages.view().TestAndSet(PageIndex(page));
  }
  ASSERT_TRUE(log_->Clear(pages.view(), {PageIndex(5), PageCount(100)}).ok());
  EXPECT_EQ(Collect(), (Set{11, 107}));
}

TEST_F(VhostLogTest, RestoredPagesComeAgain) {
  const PageBitmap unsent = *PageBitmap::Create(PageCount(kPages));
  unsent.view().TestAndSet(PageIndex(42));
  ASSERT_TRUE(log_->Restore(unsent.view()).ok());
  EXPECT_EQ(Collect(), Set{42});
  EXPECT_EQ(Collect(), Set());
}

TEST_F(VhostLogTest, WantsToBeStarted) {
  EXPECT_EQ(log_->Start().code(), StatusCode::kFailedPrecondition);
  const PageBitmap small = *PageBitmap::Create(PageCount(kPages - 1));
  EXPECT_EQ(log_->Collect(small.view()).status().code(),
            StatusCode::kInvalidArgument);
  ASSERT_TRUE(log_->Stop().ok());
  EXPECT_EQ(log_->Collect(into_.view()).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(log_->Clear(into_.view(), {}).code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(log_->Restore(into_.view()).code(),
            StatusCode::kFailedPrecondition);
}

TEST(VhostLogCreateTest, RefusesWhatCannotBeLogged) {
  const auto refusal = [](const std::vector<Slot>& slots) {
    const absl::Status status = VhostLog::Create(Layout(), slots).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal({SlotAt({1, 0}, 0, 0, 10)}),
            "no slot is in address space 0, so a device sees no RAM to log");
  EXPECT_TRUE(absl::StrContains(refusal({SlotAt({0, 0}, 0, 290, 11)}), "slot"));
  const uint64_t end = kMaxVhostLoggedBytes.value() / kPageSize;
  EXPECT_TRUE(absl::StrContains(refusal({SlotAt({0, 3}, end - 9, 0, 10)}),
                                "slot 0:3 ends above guest-physical address"));
  EXPECT_TRUE(
      VhostLog::Create(Layout(), {SlotAt({0, 3}, end - 10, 0, 10)}).ok());
}

// A back-end that logs while pages are collected: write, then log; collect,
// then read. The last collected version of each page is the last written.
TEST_F(VhostLogTest, NoWriteIsLostToACollect) {
  constexpr int kWrites = 200000;
  std::vector<std::atomic<uint64_t>> version(100);
  std::vector<uint64_t> read(100, 0);
  std::atomic<bool> done = false;
  std::thread device([&] {
    for (int i = 0; i < kWrites; ++i) {
      const uint64_t page = static_cast<uint64_t>(i) * 7 % 100;
      version[page].fetch_add(1, std::memory_order_relaxed);
      Log(page);
    }
    done = true;
  });
  for (bool last = false; !last;) {
    last = done;
    for (uint64_t page : Collect()) {
      read[page] = version[page].load(std::memory_order_relaxed);
    }
  }
  device.join();
  for (uint64_t page = 0; page < 100; ++page) {
    EXPECT_EQ(read[page], version[page].load()) << page;
  }
}

}  // namespace
}  // namespace postcopy
