#include "dirtytrack/clock.h"

#include <atomic>
#include <thread>

#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

TEST(MonotonicClockTest, SleepsAtLeastAsLongAsAsked) {
  Clock* clock = Clock::Monotonic();
  const int64_t before = clock->NowNanos();
  clock->SleepFor(2 * kNanosPerMilli);
  EXPECT_GE(clock->NowNanos() - before, 2 * kNanosPerMilli);
}

TEST(MonotonicClockTest, NoTimeIsNoSleep) {
  Clock::Monotonic()->SleepFor(0);
  Clock::Monotonic()->SleepFor(INT64_MIN);
}

TEST(SimulatedClockTest, SleepMovesTheTime) {
  SimulatedClock clock;
  EXPECT_EQ(clock.NowNanos(), 0);
  clock.SleepFor(5);
  clock.SleepFor(0);
  clock.SleepFor(-7);
  EXPECT_EQ(clock.NowNanos(), 5);
  clock.Advance(2);
  EXPECT_EQ(clock.NowNanos(), 7);
}

TEST(SimulatedClockTest, ManualSleepEndsWithEnoughAdvance) {
  SimulatedClock clock(SimulatedClock::Mode::kManual);
  std::atomic<bool> awake = false;
  std::thread sleeper([&] {
    clock.SleepFor(10);
    awake = true;
  });
  clock.AwaitSleepers(1);
  clock.Advance(9);
  clock.AwaitSleepers(1);
  EXPECT_FALSE(awake);
  clock.Advance(1);
  sleeper.join();
  EXPECT_TRUE(awake);
  EXPECT_EQ(clock.NowNanos(), 10);
}

}  // namespace
}  // namespace postcopy
