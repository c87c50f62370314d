#include "dirtytrack/measured_source.h"

#include <memory>
#include <utility>
#include <vector>

#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/simulated_dirty_source.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr PageCount kPages{200};

RamLayout Layout() {
  return *RamLayout::Create({{"ram", RamOffset(0), BytesIn(kPages)}});
}

Slot SlotOf(SlotId id, uint64_t first_page, uint64_t pages) {
  return {id, first_page * kPageSize, OffsetOf(PageIndex(first_page)),
          BytesIn(PageCount(pages))};
}

class MeasuredSourceTest : public testing::Test {
 protected:
  MeasuredSourceTest() : into_(*PageBitmap::Create(kPages)) {
    auto inner = std::make_unique<SimulatedDirtySource>(kPages);
    inner_ = inner.get();
    // The second shows a part of what the first does.
    source_ = *MeasuredSource::Create(
        std::move(inner), Layout(),
        {SlotOf({0, 0}, 0, 200), SlotOf({1, 0}, 50, 50)}, 3, &clock_);
    EXPECT_TRUE(source_->Start().ok());
  }

  PageCount Round(int64_t millis, PageRun written) {
    inner_->MarkRun(written);
    clock_.Advance(millis * kNanosPerMilli);
    into_.Reset();
    return *source_->Collect(into_.view());
  }

  SimulatedClock clock_;
  SimulatedDirtySource* inner_;
  std::unique_ptr<MeasuredSource> source_;
  PageBitmap into_;
};

TEST_F(MeasuredSourceTest, CountsRoundsBySlotAndTime) {
  EXPECT_TRUE(source_->Rounds().empty());
  EXPECT_EQ(Round(500, {PageIndex(40), PageCount(20)}), PageCount(20));
  EXPECT_EQ(Round(100, {PageIndex(0), PageCount(5)}), PageCount(5));
  const std::vector<DirtyRound> rounds = source_->Rounds();
  ASSERT_EQ(rounds.size(), 2u);
  EXPECT_EQ(rounds[0].pages, PageCount(5));
  EXPECT_EQ(rounds[0].duration_nanos, 100 * kNanosPerMilli);
  EXPECT_DOUBLE_EQ(rounds[0].PagesPerSecond(), 50);
  EXPECT_EQ(rounds[0].by_slot,
            (std::vector<PageCount>{PageCount(5), PageCount(0)}));
  EXPECT_EQ(rounds[1].pages, PageCount(20)) << "each page once";
  EXPECT_EQ(rounds[1].by_slot,
            (std::vector<PageCount>{PageCount(20), PageCount(10)}));
  EXPECT_DOUBLE_EQ(rounds[1].PagesPerSecond(), 40);
}

TEST_F(MeasuredSourceTest, ARoundThatTookNoTimeHasNoRate) {
  Round(0, {PageIndex(0), PageCount(5)});
  EXPECT_DOUBLE_EQ(source_->Rounds()[0].PagesPerSecond(), 0);
}

TEST_F(MeasuredSourceTest, PagesDirtyAlreadyCountInTheirRound) {
  inner_->MarkRun({PageIndex(0), PageCount(5)});
  into_.view().SetRun({PageIndex(0), PageCount(3)});
  EXPECT_EQ(*source_->Collect(into_.view()), PageCount(2));
  EXPECT_EQ(source_->Rounds()[0].pages, PageCount(5));
}

TEST_F(MeasuredSourceTest, RecencyGoesBackAsFarAsRoundsAreKept) {
  EXPECT_EQ(source_->RoundsSinceDirty(PageIndex(7)), 3u);
  Round(1, {PageIndex(7), PageCount(1)});
  EXPECT_EQ(source_->RoundsSinceDirty(PageIndex(7)), 0u);
  Round(1, {PageIndex(8), PageCount(1)});
  Round(1, {PageIndex(9), PageCount(1)});
  EXPECT_EQ(source_->RoundsSinceDirty(PageIndex(7)), 2u);
  EXPECT_EQ(source_->RoundsSinceDirty(PageIndex(8)), 1u);
  EXPECT_EQ(source_->RoundsSinceDirty(PageIndex(9)), 0u);
  Round(1, {PageIndex(9), PageCount(1)});
  EXPECT_EQ(source_->RoundsSinceDirty(PageIndex(7)), 3u) << "forgotten";
  EXPECT_EQ(source_->Rounds().size(), 3u);
}

TEST_F(MeasuredSourceTest, AFailedCollectIsNoRoundAndLosesNothing) {
  inner_->MarkRun({PageIndex(10), PageCount(5)});
  inner_->FailNextCollect(absl::UnavailableError("injected"), PageCount(2));
  EXPECT_EQ(source_->Collect(into_.view()).status(),
            absl::UnavailableError("injected"));
  EXPECT_EQ(into_.view().Count(), PageCount(2));
  EXPECT_TRUE(source_->Rounds().empty());
  EXPECT_EQ(*source_->Collect(into_.view()), PageCount(3));
  EXPECT_EQ(source_->Rounds()[0].pages, PageCount(5));
}

TEST_F(MeasuredSourceTest, TheRestIsPassedOn) {
  into_.view().TestAndSet(PageIndex(3));
  ASSERT_TRUE(source_->Restore(into_.view()).ok());
  EXPECT_TRUE(inner_->IsPending(PageIndex(3)));
  inner_->FailNextClear(absl::InternalError("clear"));
  EXPECT_EQ(source_->Clear(into_.view(), {}), absl::InternalError("clear"));
  ASSERT_TRUE(source_->Stop().ok());
  EXPECT_FALSE(inner_->started());
  inner_->FailNextStart(absl::InternalError("start"));
  EXPECT_EQ(source_->Start(), absl::InternalError("start"));
}

TEST_F(MeasuredSourceTest, StartsAnew) {
  Round(1, {PageIndex(7), PageCount(1)});
  ASSERT_TRUE(source_->Stop().ok());
  ASSERT_TRUE(source_->Start().ok());
  EXPECT_TRUE(source_->Rounds().empty());
  EXPECT_EQ(source_->RoundsSinceDirty(PageIndex(7)), 3u);
}

TEST_F(MeasuredSourceTest, RefusesWhatItCannotMeasure) {
  const PageBitmap small = *PageBitmap::Create(kPages - PageCount(1));
  inner_->MarkRun({PageIndex(0), PageCount(1)});
  EXPECT_EQ(source_->Collect(small.view()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(inner_->Pending(), PageCount(1)) << "nothing was taken";
  const auto refusal = [&](std::vector<Slot> slots, size_t rounds) {
    return MeasuredSource::Create(
               std::make_unique<SimulatedDirtySource>(kPages), Layout(),
               std::move(slots), rounds, &clock_)
        .status();
  };
  const std::vector<Slot> all = {SlotOf({0, 0}, 0, 200)};
  EXPECT_EQ(refusal(all, 0).message(),
            "1 to 8 rounds can be remembered, not 0");
  EXPECT_TRUE(refusal(all, kMaxRoundsKept).ok());
  EXPECT_EQ(refusal(all, kMaxRoundsKept + 1).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal({SlotOf({0, 0}, 0, 201)}, 1).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace postcopy
