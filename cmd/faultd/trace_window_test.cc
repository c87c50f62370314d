#include "cmd/faultd/trace_window.h"

#include <cstdint>

#include "cmd/trace/trace_codec.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr PageCount kPages{100};

FaultRecord Fault(int64_t read_ns, uint64_t page, uint32_t thread = 1) {
  return {.page = PageIndex(page),
          .read_ns = read_ns,
          .stages_ns = {3},
          .thread = thread,
          .kind = FaultKind::kWrite};
}

FaultRecord End(int64_t read_ns, uint64_t page) {
  return {.page = PageIndex(page),
          .read_ns = read_ns,
          .stages_ns = {3, 10, 20, 30},
          .ended = true};
}

TEST(TraceWindowTest, TheRowsOfAFaultAreOneEvent) {
  TraceWindow window(kPages, kTraceEventsMax);
  window.Add(Fault(1000, 5));
  window.Add(Fault(1000, 6));
  window.Add(Fault(1000, 5, 2));  // waits with the first
  window.Add(Fault(1200, 5));
  window.Add(End(1000, 5));
  window.Add(End(1000, 6));
  const auto events = window.Ready(0, /*all=*/true);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0], (TraceEvent{.time_ns = 0,
                                   .page = PageIndex(5),
                                   .thread = 1,
                                   .kind = TouchKind::kWrite,
                                   .stages_ns = {3, 10, 20, 30}}));
  EXPECT_EQ(events[1].stages_ns[3], 30u);
  EXPECT_EQ(events[2].stages_ns[3], 0u);
  EXPECT_EQ(events[3].time_ns, 200u);
  EXPECT_EQ(events[3].stages_ns[3], 0u);
  window.Pop(4);
  EXPECT_TRUE(window.Ready(0, /*all=*/true).empty());
  EXPECT_EQ(window.dropped(), 0u);
}

TEST(TraceWindowTest, AnEndWithoutItsBeginningSaysNothing) {
  TraceWindow window(kPages, kTraceEventsMax);
  window.Add(End(900, 5));
  window.Add(Fault(1000, 5));
  window.Add(End(900, 5));
  window.Add(End(1100, 5));
  const auto events = window.Ready(0, /*all=*/true);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].stages_ns[1], 0u);
}

TEST(TraceWindowTest, AnEventWaitsForItsEndSoLongAndNoLonger) {
  TraceWindow window(kPages, kTraceEventsMax);
  EXPECT_TRUE(window.Ready(1, /*all=*/false).empty());
  window.Add(Fault(1000, 5));
  window.Add(Fault(1001, 6));
  EXPECT_TRUE(window.Ready(999 + kTraceHoldNanos, /*all=*/false).empty());
  EXPECT_EQ(window.Ready(1000 + kTraceHoldNanos, /*all=*/false).size(), 1u);
  EXPECT_EQ(window.Ready(1001 + kTraceHoldNanos, /*all=*/false).size(), 2u);
}

TEST(TraceWindowTest, AFullWindowGivesABatch) {
  TraceWindow window(kPages, kTraceEventsMax);
  for (size_t i = 0; i < kTraceWindowMax; ++i) {
    EXPECT_FALSE(window.Full());
    window.Add(Fault(1000, i % 100));
  }
  EXPECT_TRUE(window.Full());
  EXPECT_EQ(window.Ready(1000, /*all=*/false).size(), kTraceBatchEventsMax);
  window.Pop(kTraceBatchEventsMax);
  EXPECT_TRUE(window.Ready(1000, /*all=*/false).empty());
}

TEST(TraceWindowTest, TakesSoManyEventsAndNotOneMore) {
  TraceWindow window(kPages, 3);
  for (int i = 0; i < 3; ++i) window.Add(Fault(1000 + i, 5));
  EXPECT_EQ(window.dropped(), 0u);
  window.Add(Fault(1003, 5));
  EXPECT_EQ(window.dropped(), 1u);
  EXPECT_EQ(window.Ready(0, /*all=*/true).size(), 3u);
  window.Pop(3);
  window.Add(Fault(1004, 5));
  EXPECT_EQ(window.dropped(), 2u);
}

TEST(TraceWindowTest, ThreadsBeyondTheLimitAreNotToldApart) {
  TraceWindow window(kPages, kTraceEventsMax);
  for (uint32_t thread = 1; thread <= kTraceThreadsMax; ++thread) {
    window.Add(Fault(1000, 5, thread));
  }
  window.Add(Fault(1000, 5, 7));
  EXPECT_EQ(window.dropped(), 0u);
  const auto events = window.Ready(0, /*all=*/true);
  EXPECT_EQ(events[kTraceThreadsMax - 2].thread, kTraceThreadsMax - 1);
  EXPECT_EQ(events[kTraceThreadsMax - 1].thread, 0u);
  EXPECT_EQ(events[kTraceThreadsMax].thread, 7u);
}

TEST(TraceWindowTest, ATimeThatNoTraceCanSayIsDropped) {
  TraceWindow window(kPages, kTraceEventsMax);
  const auto last = static_cast<int64_t>(kTraceTimeNanosMax);
  window.Add(Fault(1000, 5));
  window.Add(Fault(1000 + last, 5));
  EXPECT_EQ(window.dropped(), 0u);
  window.Add(Fault(1001 + last, 5));
  EXPECT_EQ(window.dropped(), 1u);
}

}  // namespace
}  // namespace postcopy
