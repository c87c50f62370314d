#include "uffd/waiting_threads.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/stall_timer.h"

namespace postcopy {
namespace {

using Waiters = WaitingThreads::Waiters;

TEST(StallTimerTest, IsTheUnionOfTheWaits) {
  StallTimer stall;
  EXPECT_EQ(stall.Total(50), 0);
  stall.Begin(100);
  EXPECT_EQ(stall.Total(130), 30);  // while somebody waits
  stall.Begin(110);
  stall.End(140);
  EXPECT_EQ(stall.Total(150), 50);
  stall.End(160);
  EXPECT_EQ(stall.Total(1000), 60);
  stall.Begin(2000);
  stall.End(2005);
  EXPECT_EQ(stall.Total(9000), 65);
}

// Who comes late with an early time does not count a moment twice.
TEST(StallTimerTest, TimeDoesNotGoBack) {
  StallTimer stall;
  stall.Begin(100);
  stall.End(200);
  stall.Begin(150);
  EXPECT_EQ(stall.Total(180), 100);
  stall.End(170);
  EXPECT_EQ(stall.Total(300), 100);
}

TEST(StallTimerTest, AgreesWithCountingEachMoment) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  StallTimer stall;
  int64_t stalled = 0;
  for (int64_t now = 0; now < 100'000; ++now) {
    if (random() % 3 == 0) {
      stall.Begin(now);
    } else if (stall.waits() > 0) {
      stall.End(now);
    }
    EXPECT_EQ(stall.Total(now), stalled);
    if (stall.waits() > 0) ++stalled;
  }
}

FaultingThreads Copy(const WaitingThreads& threads, int64_t now_ns) {
  FaultingThreads copy;
  threads.CopyTo(&copy, now_ns);
  return copy;
}

TEST(WaitingThreadsTest, EachWaitCountsForItsThread) {
  WaitingThreads threads;
  Waiters first, second;
  threads.Begin(11, 100, &first);
  threads.Begin(12, 130, &first);
  threads.Begin(13, 140, &second);
  EXPECT_EQ(Copy(threads, 150).threads,
            (std::vector<FaultingThread>{
                {11, 1, 50, 50}, {12, 1, 20, 20}, {13, 1, 10, 10}}));
  threads.End(&first, 200);
  threads.End(&first, 300);  // nobody waits for it any more
  threads.Begin(11, 400, &first);
  threads.End(&first, 410);
  EXPECT_EQ(Copy(threads, 500).threads,
            (std::vector<FaultingThread>{
                {11, 2, 110, 100}, {12, 1, 70, 70}, {13, 1, 360, 360}}));
}

// A signal, or a wake of all, makes a thread fault again.
TEST(WaitingThreadsTest, AWaitGoesOnAtTheSamePageAndEndsAtAnother) {
  WaitingThreads threads;
  Waiters first, second;
  for (const uint32_t id : {11, 12, 13}) threads.Begin(id, 100, &first);
  threads.Begin(12, 150, &first);
  EXPECT_EQ(Copy(threads, 160).threads[1], (FaultingThread{12, 2, 60, 60}));
  threads.Begin(12, 170, &second);  // from between its neighbours
  threads.End(&first, 200);
  threads.End(&second, 200);
  EXPECT_EQ(Copy(threads, 300).threads,
            (std::vector<FaultingThread>{
                {11, 1, 100, 100}, {12, 3, 100, 70}, {13, 1, 100, 100}}));
}

TEST(WaitingThreadsTest, WhoDoesNotWaitIsOnlyCounted) {
  WaitingThreads threads;
  threads.Count(11);
  EXPECT_EQ(Copy(threads, 100).threads,
            (std::vector<FaultingThread>{{11, 1, 0, 0}}));
}

TEST(WaitingThreadsTest, AThreadThatIsNotNamedIsNone) {
  WaitingThreads threads;
  Waiters waiters;
  threads.Count(0);
  threads.Begin(0, 100, &waiters);
  threads.End(&waiters, 200);
  EXPECT_EQ(Copy(threads, 300), FaultingThreads());
}

TEST(WaitingThreadsTest, AtItsLimitAndOnePast) {
  WaitingThreads threads;
  Waiters waiters;
  for (uint32_t id = 1; id <= kMaxFaultingThreads; ++id) {
    threads.Begin(id * 1000, 100, &waiters);
  }
  EXPECT_EQ(Copy(threads, 100).threads.size(), kMaxFaultingThreads);
  EXPECT_EQ(Copy(threads, 100).others.faults, 0u);
  threads.Begin(7, 110, &waiters);
  threads.Begin(8, 150, &waiters);
  threads.Count(9);
  threads.End(&waiters, 200);
  const FaultingThreads copy = Copy(threads, 300);
  EXPECT_EQ(copy.threads.size(), kMaxFaultingThreads);
  for (const FaultingThread& thread : copy.threads) {
    EXPECT_EQ(thread, (FaultingThread{thread.id, 1, 100, 100}));
  }
  EXPECT_EQ(copy.others, (FaultingThread{0, 3, 140, 90}));
  // Those who have a place keep it.
  threads.Begin(1000, 400, &waiters);
  threads.End(&waiters, 600);
  EXPECT_EQ(Copy(threads, 600).threads[0], (FaultingThread{1000, 2, 300, 200}));
}

// Who ends a wait may have read the clock before a message of it was read.
TEST(WaitingThreadsTest, NoWaitIsNegative) {
  WaitingThreads threads;
  Waiters waiters;
  for (uint32_t id = 1; id <= kMaxFaultingThreads + 2; ++id) {
    threads.Begin(id, 100 + id, &waiters);
  }
  threads.End(&waiters, 50);
  const FaultingThreads copy = Copy(threads, 50);
  EXPECT_EQ(copy.threads[0].wait_ns, 0u);
  EXPECT_EQ(copy.others.wait_ns, 0u);
}

}  // namespace
}  // namespace postcopy
