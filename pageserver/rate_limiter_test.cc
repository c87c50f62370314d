#include "pageserver/rate_limiter.h"

#include <algorithm>
#include <cstdint>

#include "dirtytrack/clock.h"
#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr ByteCount kMiB{1 << 20};
constexpr ByteCount kBatch{256 << 10};

class RateLimiterTest : public testing::Test {
 protected:
  // How long Pace(bytes) slept.
  int64_t Slept(RateLimiter& limiter, ByteCount bytes) {
    const int64_t before = clock_.NowNanos();
    limiter.Pace(bytes);
    return clock_.NowNanos() - before;
  }

  SimulatedClock clock_;
};

TEST_F(RateLimiterTest, WithoutALimitNeverSleeps) {
  RateLimiter limiter(&clock_, ByteCount(0));
  EXPECT_EQ(limiter.limit(), ByteCount(0));
  for (int i = 0; i < 1000; ++i) limiter.Pace(ByteCount(uint64_t{1} << 40));
  EXPECT_EQ(clock_.NowNanos(), 0);
}

// The sender never idles, so nothing is saved up: the rate is exact but for
// the nanosecond each call rounds down.
TEST_F(RateLimiterTest, LongRunRateIsTheLimit) {
  RateLimiter limiter(&clock_, ByteCount(7'000'001));
  constexpr int kCalls = 10'000;
  for (int i = 0; i < kCalls; ++i) limiter.Pace(kBatch);
  const int64_t exact =
      static_cast<int64_t>(static_cast<__uint128_t>(kBatch.value()) * kCalls *
                           kNanosPerSecond / 7'000'001);
  EXPECT_LE(clock_.NowNanos(), exact);
  EXPECT_GE(clock_.NowNanos(), exact - kCalls);
}

// A sender that takes its own time between calls gets the same rate: what it
// is late is made up for, within a burst.
TEST_F(RateLimiterTest, ASlowSenderCatchesUp) {
  RateLimiter limiter(&clock_, kMiB);
  for (int i = 0; i < 100; ++i) {
    clock_.Advance(i % 2 == 0 ? 400 * kNanosPerMilli : 0);
    limiter.Pace(kBatch);
  }
  EXPECT_EQ(clock_.NowNanos(), 25 * kNanosPerSecond);
}

TEST_F(RateLimiterTest, AnIdleLinkSavesUpAtMostABurst) {
  RateLimiter limiter(&clock_, kMiB);
  clock_.Advance(3600 * kNanosPerSecond);
  EXPECT_EQ(Slept(limiter, RateLimiter::kBurst), 0);
  EXPECT_EQ(Slept(limiter, kBatch), kNanosPerSecond / 4);
}

TEST_F(RateLimiterTest, AShortPauseSavesUpWhatItLasted) {
  RateLimiter limiter(&clock_, kMiB);
  clock_.Advance(kNanosPerSecond / 2);
  EXPECT_EQ(Slept(limiter, ByteCount(512 << 10)), 0);
  EXPECT_EQ(Slept(limiter, kBatch), kNanosPerSecond / 4);
}

TEST_F(RateLimiterTest, LimitMayChangeAtAnyTime) {
  RateLimiter limiter(&clock_, kMiB);
  EXPECT_EQ(Slept(limiter, kMiB), kNanosPerSecond);
  limiter.SetLimit(ByteCount(4 << 20));
  EXPECT_EQ(limiter.limit(), ByteCount(4 << 20));
  EXPECT_EQ(Slept(limiter, kMiB), kNanosPerSecond / 4);
  limiter.SetLimit(ByteCount(0));
  EXPECT_EQ(Slept(limiter, ByteCount(uint64_t{1} << 40)), 0);
  // What went out without a limit is no debt, and no credit.
  limiter.SetLimit(kMiB);
  EXPECT_EQ(Slept(limiter, kMiB), kNanosPerSecond);
}

// Time moves by sleeping, and the limit changes at a moment.
class ChangingClock final : public Clock {
 public:
  int64_t NowNanos() override { return now_; }
  void SleepFor(int64_t nanos) override {
    longest_ = std::max(longest_, nanos);
    now_ += nanos;
    if (now_ >= change_ns) limiter->SetLimit(limit);
  }
  int64_t longest() const { return longest_; }

  RateLimiter* limiter = nullptr;
  int64_t change_ns = 0;
  ByteCount limit;

 private:
  int64_t now_ = 0;
  int64_t longest_ = 0;
};

struct Change {
  uint64_t from_mib;
  uint64_t to_mib;
  // From the change, after half a second of one that sends 2 MiB/s.
  int64_t millis_left;
};

class RateLimiterChangeTest : public testing::TestWithParam<Change> {};

// What had not left when the limit changed leaves at the new one, and the
// change is seen within kLongestSleepNanos.
TEST_P(RateLimiterChangeTest, ReachesWhoIsWaiting) {
  const Change& change = GetParam();
  ChangingClock clock;
  RateLimiter limiter(&clock, ByteCount(change.from_mib << 20));
  clock.limiter = &limiter;
  clock.change_ns = 500 * kNanosPerMilli;
  clock.limit = ByteCount(change.to_mib << 20);
  limiter.Pace(ByteCount(2 << 20));
  EXPECT_EQ(clock.NowNanos(), (500 + change.millis_left) * kNanosPerMilli);
  EXPECT_EQ(clock.longest(), RateLimiter::kLongestSleepNanos);
}

INSTANTIATE_TEST_SUITE_P(Changes, RateLimiterChangeTest,
                         testing::Values(Change{2, 1, 1000}, Change{2, 4, 250},
                                         Change{2, 0, 0}, Change{2, 2, 500}));

}  // namespace
}  // namespace postcopy
