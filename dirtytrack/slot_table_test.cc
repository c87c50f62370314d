#include "dirtytrack/slot_table.h"

#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr uint64_t kPages = 1000;

Slot SlotAt(SlotId id, uint64_t gpa_page, uint64_t ram_page, uint64_t pages) {
  return {.id = id,
          .guest_physical_address = gpa_page * kPageSize,
          .start = RamOffset(ram_page * kPageSize),
          .length = ByteCount(pages * kPageSize)};
}

class SlotTableTest : public testing::Test {
 protected:
  SlotTable table_{*RamLayout::Create(
      {{.name = "ram", .length = ByteCount(kPages * kPageSize)}})};
};

TEST_F(SlotTableTest, SlotsAreAddedMovedResizedAndRemoved) {
  const Slot high = SlotAt({0, 1}, 2000, 500, 500);
  const Slot low = SlotAt({0, 0}, 0, 0, 500);
  ASSERT_TRUE(table_.Set(high).ok());
  ASSERT_TRUE(table_.Set(low).ok());
  ASSERT_EQ(table_.slots().size(), 2u);
  EXPECT_EQ(table_.slots()[0], low);
  EXPECT_EQ(table_.slots()[1], high);

  const Slot moved = SlotAt({0, 1}, 4000, 500, 500);
  ASSERT_TRUE(table_.Set(moved).ok());
  EXPECT_EQ(table_.slots()[1], moved);
  const Slot resized = SlotAt({0, 1}, 4000, 500, 400);
  ASSERT_TRUE(table_.Set(resized).ok());
  EXPECT_EQ(table_.slots()[1], resized);

  ASSERT_TRUE(table_.Remove({0, 0}).ok());
  ASSERT_EQ(table_.slots().size(), 1u);
  const absl::Status status = table_.Remove({0, 0});
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "the VM has no slot 0:0");
}

TEST_F(SlotTableTest, OverlapIsRefusedWithinOneAddressSpaceOnly) {
  ASSERT_TRUE(table_.Set(SlotAt({0, 0}, 0, 0, 500)).ok());
  ASSERT_TRUE(table_.Set(SlotAt({0, 1}, 500, 500, 500)).ok());
  // The same guest-physical pages, and the same RAM, in another one.
  EXPECT_TRUE(table_.Set(SlotAt({1, 0}, 0, 0, 500)).ok());

  const absl::Status moved = table_.Set(SlotAt({0, 1}, 499, 500, 500));
  EXPECT_EQ(moved.code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(moved.message(), "slot 0:0")) << moved;
  EXPECT_TRUE(absl::StrContains(moved.message(), "slot 0:1")) << moved;
  EXPECT_EQ(table_.slots()[1], SlotAt({0, 1}, 500, 500, 500));
}

TEST_F(SlotTableTest, ARefusedChangeChangesNothing) {
  ASSERT_TRUE(table_.Set(SlotAt({0, 0}, 0, 0, 500)).ok());
  EXPECT_EQ(table_.Set(SlotAt({0, 0}, 0, 0, kPages + 1)).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(table_.Set(SlotAt({0, 1}, 600, kPages, 1)).code(),
            StatusCode::kInvalidArgument);
  ASSERT_EQ(table_.slots().size(), 1u);
  EXPECT_EQ(table_.slots()[0], SlotAt({0, 0}, 0, 0, 500));
}

TEST_F(SlotTableTest, LogsAreOfTheSlotsSizes) {
  ASSERT_TRUE(table_.Set(SlotAt({1, 2}, 0, 0, 70)).ok());
  const std::vector<DirtyLogSlot> logs = LogSlotsOf(table_.slots());
  ASSERT_EQ(logs.size(), 1u);
  EXPECT_EQ(logs[0], (DirtyLogSlot{{1, 2}, PageCount(70)}));
}

}  // namespace
}  // namespace postcopy
