#include "dirtytrack/simulated_dirty_source.h"

#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr PageCount kPages{100};

class SimulatedDirtySourceTest : public testing::Test {
 protected:
  SimulatedDirtySourceTest() : into_(*PageBitmap::Create(kPages)) {}

  SimulatedDirtySource source_{kPages};
  PageBitmap into_;
};

TEST_F(SimulatedDirtySourceTest, ReportsWhatIsMarkedOnce) {
  source_.Mark(PageIndex(1));  // before Start: not tracked
  ASSERT_TRUE(source_.Start().ok());
  source_.Mark(PageIndex(2));
  source_.MarkRun({PageIndex(98), PageCount(2)});
  into_.view().TestAndSet(PageIndex(2));
  EXPECT_EQ(source_.Pending(), PageCount(3));
  EXPECT_EQ(*source_.Collect(into_.view()), PageCount(2));
  EXPECT_EQ(into_.view().Count(), PageCount(3));
  EXPECT_EQ(*source_.Collect(into_.view()), PageCount(0));
  EXPECT_EQ(source_.collects(), 2u);
}

TEST_F(SimulatedDirtySourceTest, RestoredPagesComeAgain) {
  ASSERT_TRUE(source_.Start().ok());
  into_.view().TestAndSet(PageIndex(7));
  ASSERT_TRUE(source_.Restore(into_.view()).ok());
  EXPECT_TRUE(into_.view().TestAndClear(PageIndex(7)));
  EXPECT_EQ(*source_.Collect(into_.view()), PageCount(1));
  EXPECT_TRUE(into_.view().Test(PageIndex(7)));
}

TEST_F(SimulatedDirtySourceTest, FailedCollectLosesNothing) {
  ASSERT_TRUE(source_.Start().ok());
  source_.MarkRun({PageIndex(10), PageCount(5)});
  source_.FailNextCollect(absl::UnavailableError("injected"), PageCount(2));
  EXPECT_EQ(source_.Collect(into_.view()).status().message(), "injected");
  EXPECT_EQ(into_.view().Count(), PageCount(2));
  EXPECT_EQ(*source_.Collect(into_.view()), PageCount(3));
}

TEST_F(SimulatedDirtySourceTest, TwoStepsReportUntilCleared) {
  SimulatedDirtySource source(kPages,
                              SimulatedDirtySource::Tracking::kTwoSteps);
  ASSERT_TRUE(source.Start().ok());
  EXPECT_EQ(*source.Collect(into_.view()), kPages);
  EXPECT_EQ(source.Pending(), kPages);
  into_.Reset();
  into_.view().SetRun({PageIndex(10), PageCount(20)});
  ASSERT_TRUE(source.Clear(into_.view(), {PageIndex(15), PageCount(50)}).ok());
  EXPECT_EQ(source.Pending(), PageCount(85));
  source.Mark(PageIndex(20));
  EXPECT_EQ(source.Pending(), PageCount(86));
  into_.Reset();
  EXPECT_EQ(*source.Collect(into_.view()), PageCount(86));
  EXPECT_TRUE(into_.view().Test(PageIndex(20)));
  EXPECT_FALSE(into_.view().Test(PageIndex(21)));
}

TEST_F(SimulatedDirtySourceTest, EachFailureHappensOnce) {
  const absl::Status error = absl::InternalError("injected");
  source_.FailNextStart(error);
  EXPECT_EQ(source_.Start(), error);
  EXPECT_FALSE(source_.started());
  ASSERT_TRUE(source_.Start().ok());
  EXPECT_TRUE(source_.started());
  const PageRun all{PageIndex(0), kPages};
  source_.FailNextClear(error);
  EXPECT_EQ(source_.Clear(into_.view(), all), error);
  EXPECT_TRUE(source_.Clear(into_.view(), all).ok());
  source_.FailNextRestore(error);
  EXPECT_EQ(source_.Restore(into_.view()), error);
  EXPECT_TRUE(source_.Restore(into_.view()).ok());
  source_.FailNextStop(error);
  EXPECT_EQ(source_.Stop(), error);
  EXPECT_TRUE(source_.Stop().ok());
}

TEST_F(SimulatedDirtySourceTest, NeedsStart) {
  constexpr auto kFailed = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(source_.Collect(into_.view()).status().code(), kFailed);
  EXPECT_EQ(source_.Clear(into_.view(), {}).code(), kFailed);
  EXPECT_EQ(source_.Restore(into_.view()).code(), kFailed);
  EXPECT_TRUE(source_.Stop().ok());
  ASSERT_TRUE(source_.Start().ok());
  EXPECT_EQ(source_.Start().code(), kFailed);
  source_.Mark(PageIndex(3));
  ASSERT_TRUE(source_.Stop().ok());
  EXPECT_EQ(source_.Pending(), PageCount(0));
}

}  // namespace
}  // namespace postcopy
