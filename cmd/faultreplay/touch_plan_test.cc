#include "cmd/faultreplay/touch_plan.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

TEST(TouchPlanTest, ThreadsKeepTheirOrderAndWhatTheyDo) {
  const Trace trace = {
      .pages = PageCount(10),
      .events = {{.time_ns = 5, .page = PageIndex(1), .thread = 700},
                 {.time_ns = 6,
                  .page = PageIndex(2),
                  .thread = 3,
                  .kind = TouchKind::kWrite},
                 {.time_ns = 9, .page = PageIndex(1), .thread = 3}}};
  const absl::StatusOr<TouchPlan> plan = PlanTouches(trace, /*think=*/false);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->threads.size(), 2u);
  ASSERT_EQ(plan->threads[0].size(), 1u);
  ASSERT_EQ(plan->threads[1].size(), 2u);
  EXPECT_EQ(plan->threads[1][0].page, PageIndex(2));
  EXPECT_TRUE(plan->threads[1][0].write);
  EXPECT_FALSE(plan->threads[1][1].write);
  EXPECT_EQ(plan->threads[1][1].think_ns, 0u);
  EXPECT_EQ(plan->distinct, PageCount(2));
  EXPECT_TRUE(TouchedPages(*plan)[1]);
  EXPECT_FALSE(TouchedPages(*plan)[0]);
}

TEST(TouchPlanTest, ThinkingIsWhatIsLeftBetweenFaults) {
  const Trace trace = {
      .pages = PageCount(10),
      .events = {{.time_ns = 100, .stages_ns = {1, 2, 3, 4}},
                 {.time_ns = 150},
                 // A fault that began before the one before was over.
                 {.time_ns = 160, .stages_ns = {0, 0, 100, 0}},
                 {.time_ns = 200}}};
  const absl::StatusOr<TouchPlan> plan = PlanTouches(trace, /*think=*/true);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::vector<uint64_t> thinks;
  for (const Touch& touch : plan->threads[0]) thinks.push_back(touch.think_ns);
  EXPECT_THAT(thinks, ::testing::ElementsAre(100, 40, 10, 0));
}

TEST(TouchPlanTest, LimitOfThreads) {
  Trace trace = {.pages = PageCount(1)};
  for (uint32_t i = 0; i < kReplayThreadsMax; ++i) {
    trace.events.push_back({.thread = i});
  }
  EXPECT_TRUE(PlanTouches(trace, false).ok());
  trace.events.push_back({.thread = kReplayThreadsMax});
  EXPECT_THAT(std::string(PlanTouches(trace, false).status().message()),
              HasSubstr("257 threads"));
}

TEST(TouchPlanTest, LimitOfMemory) {
  Trace trace = {.pages = kReplayPagesMax, .events = {{}}};
  EXPECT_TRUE(PlanTouches(trace, false).ok());
  trace.pages += PageCount(1);
  EXPECT_FALSE(PlanTouches(trace, false).ok());
}

TEST(TouchPlanTest, ATraceWithoutEventsCannotBeReplayed) {
  EXPECT_FALSE(PlanTouches({.pages = PageCount(1)}, false).ok());
}

}  // namespace
}  // namespace postcopy
