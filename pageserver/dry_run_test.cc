#include "pageserver/dry_run.h"

#include <memory>

#include "dirtytrack/clock.h"
#include "dirtytrack/simulated_dirty_source.h"
#include "gtest/gtest.h"
#include "pageserver/test_guest.h"

namespace postcopy {
namespace {

// Writes while it is waited for.
class WritingClock final : public Clock {
 public:
  int64_t NowNanos() override { return now_; }
  void SleepFor(int64_t nanos) override {
    now_ += nanos;
    for (uint64_t page = 0; page < written; ++page) {
      source->Mark(PageIndex(page));
    }
  }

  SimulatedDirtySource* source = nullptr;
  uint64_t written = 0;

 private:
  int64_t now_ = 0;
};

class DryRunTest : public testing::Test {
 protected:
  DryRunTest() {
    for (uint64_t page = 0; page < 100; ++page) guest_.Write(page, 1);
    clock_.source = &source_;
  }

  TestGuest guest_{{150, 106}};
  SimulatedDirtySource source_{PageCount(256)};
  WritingClock clock_;
};

// 20 pages in 200 ms are 400 KiB/s; 100 pages at 1 MiB/s take 390 ms.
TEST_F(DryRunTest, WatchesTheGuest) {
  clock_.written = 20;
  const auto estimate =
      DryRun(*guest_.OpenMemory(), &source_,
             {.bulk_limit_per_second = ByteCount(1 << 20)}, &clock_);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->dirty_bytes_per_second, 400 << 10);
  EXPECT_EQ(estimate->bandwidth_bytes_per_second, 1 << 20);
  EXPECT_EQ(estimate->unsent, BytesIn(PageCount(100)));
  EXPECT_EQ(estimate->stall_nanos, 390'625'000);
  EXPECT_GT(estimate->remaining_precopy_nanos, estimate->stall_nanos);
  EXPECT_FALSE(source_.started());
  EXPECT_EQ(clock_.NowNanos(), kDryRunNanos);
}

// A source that reports a page again only when it has been cleared.
TEST_F(DryRunTest, WatchesASourceOfTwoSteps) {
  SimulatedDirtySource source(PageCount(256),
                              SimulatedDirtySource::Tracking::kTwoSteps);
  clock_.source = &source;
  clock_.written = 20;
  const auto estimate = DryRun(*guest_.OpenMemory(), &source, {}, &clock_);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->dirty_bytes_per_second, 400 << 10);
}

TEST_F(DryRunTest, WithoutALimitTheTimesAreNotKnown) {
  const auto estimate = DryRun(*guest_.OpenMemory(), &source_, {}, &clock_);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->dirty_bytes_per_second, 0);
  EXPECT_EQ(estimate->bandwidth_bytes_per_second, -1);
  EXPECT_EQ(estimate->stall_nanos, -1);
}

TEST_F(DryRunTest, WithoutRoundsNobodyIsWatched) {
  const auto estimate =
      DryRun(*guest_.OpenMemory(), &source_,
             {.policy = MigrationPolicy::kPostcopyOnly}, &clock_);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->dirty_bytes_per_second, -1);
  EXPECT_EQ(clock_.NowNanos(), 0);
}

TEST_F(DryRunTest, TrackingThatDoesNotStartIsTheError) {
  ASSERT_TRUE(source_.Start().ok());
  EXPECT_EQ(DryRun(*guest_.OpenMemory(), &source_, {}, &clock_).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace postcopy
