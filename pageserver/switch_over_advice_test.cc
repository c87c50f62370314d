#include "pageserver/switch_over_advice.h"

#include <string>

#include "dirtytrack/clock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr ByteCount kMiB1000{uint64_t{1000} << 20};

// A round that sent 1000 MiB in one second.
RoundFigures Round(uint32_t round, uint64_t dirty_after) {
  return {.round = round,
          .sent = kMiB1000,
          .nanos = kNanosPerSecond,
          .dirty_after = PageCount(dirty_after)};
}

TEST(SwitchOverAdviceTest, NothingIsSaidBeforeTheFirstRound) {
  const SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyThenPostcopy, 0);
  EXPECT_FALSE(advisor.advice().recommended);
  EXPECT_EQ(advisor.advice().reason, "the first round is not finished");
}

// 50 ms at 1000 MiB/s are 50 MiB, 12800 pages.
TEST(SwitchOverAdviceTest, ConvergedAtTheDowntimeTarget) {
  for (MigrationPolicy policy :
       {MigrationPolicy::kPrecopyThenPostcopy, MigrationPolicy::kPrecopyOnly}) {
    SwitchOverAdvisor advisor(policy, 0);
    const Advice& above = advisor.AddRound(Round(1, 12801));
    EXPECT_FALSE(above.recommended);
    EXPECT_EQ(above.reason,
              "one more round: 12801 pages are dirty after round 1, 50 ms at "
              "1000 MiB/s");
    const Advice& at = advisor.AddRound(Round(2, 12800));
    EXPECT_TRUE(at.recommended);
    EXPECT_EQ(at.reason,
              "switch now: converged: 12800 pages are dirty after round 2, 50 "
              "ms at 1000 MiB/s");
  }
}

TEST(SwitchOverAdviceTest, AnIdleGuestConvergesAtOnce) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyThenPostcopy, 0);
  EXPECT_TRUE(advisor.AddRound(Round(1, 0)).recommended);
}

// Nothing sent, no time passed: no division by zero.
TEST(SwitchOverAdviceTest, AnEmptyRound) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyThenPostcopy, 0);
  const Advice& advice = advisor.AddRound({.round = 1});
  EXPECT_TRUE(advice.recommended);
}

TEST(SwitchOverAdviceTest, NotConvergingTakesTwoRoundsRunning) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyThenPostcopy, 0);
  EXPECT_FALSE(advisor.AddRound(Round(1, 256000)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(2, 256000)).recommended);
  const Advice& advice = advisor.AddRound(Round(3, 256000));
  EXPECT_TRUE(advice.recommended);
  EXPECT_EQ(advice.reason,
            "switch now: not converging: dirty rate 1000 MiB/s: 256000 pages "
            "are dirty after round 3, 1000 ms at 1000 MiB/s");
}

TEST(SwitchOverAdviceTest, ARoundOfProgressStartsTheCountAgain) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyThenPostcopy, 0);
  EXPECT_FALSE(advisor.AddRound(Round(1, 1'000'000)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(2, 1'000'000)).recommended);
  // One page below seven tenths is progress.
  EXPECT_FALSE(advisor.AddRound(Round(3, 699'999)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(4, 699'999)).recommended);
  EXPECT_TRUE(advisor.AddRound(Round(5, 699'999)).recommended);
}

TEST(SwitchOverAdviceTest, ExactlySevenTenthsIsNoProgress) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyThenPostcopy, 0);
  EXPECT_FALSE(advisor.AddRound(Round(1, 1'000'000)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(2, 700'000)).recommended);
  EXPECT_TRUE(advisor.AddRound(Round(3, 490'000)).recommended);
}

// A lane that broke in round 1 makes round 2 the first that is told.
TEST(SwitchOverAdviceTest, TheFirstRoundToldHasNothingToCompareWith) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyThenPostcopy, 0);
  EXPECT_FALSE(advisor.AddRound(Round(2, 256000)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(3, 256000)).recommended);
  EXPECT_TRUE(advisor.AddRound(Round(4, 256000)).recommended);
}

TEST(SwitchOverAdviceTest, RoundsMax) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyOnly, 3);
  EXPECT_FALSE(advisor.AddRound(Round(1, 256000)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(2, 256000)).recommended);
  const Advice& advice = advisor.AddRound(Round(3, 256000));
  EXPECT_TRUE(advice.recommended);
  EXPECT_EQ(advice.reason,
            "switch now: the limit of 3 rounds is reached: 256000 pages are "
            "dirty after round 3, 1000 ms at 1000 MiB/s");
}

// So neither is precopy-only ever called "not converging".
TEST(SwitchOverAdviceTest, PrecopyOnlyGoesOnToTheDefaultLimit) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyOnly, 0);
  for (uint32_t round = 1; round < kRoundsDefault; ++round) {
    EXPECT_FALSE(advisor.AddRound(Round(round, 256000)).recommended) << round;
  }
  const Advice& advice = advisor.AddRound(Round(kRoundsDefault, 256000));
  EXPECT_TRUE(advice.recommended);
  EXPECT_EQ(advice.reason,
            "switch now: the limit of 30 rounds is reached: 256000 pages are "
            "dirty after round 30, 1000 ms at 1000 MiB/s");
}

TEST(SwitchOverAdviceTest, PostcopyOnlyAtOnce) {
  const SwitchOverAdvisor advisor(MigrationPolicy::kPostcopyOnly, 0);
  EXPECT_TRUE(advisor.advice().recommended);
  EXPECT_EQ(advisor.advice().reason, "switch now: the policy is postcopy-only");
}

// A round of a few pages measures round trips. Were it believed, 20000 pages
// would seem to take minutes.
TEST(SwitchOverAdviceTest, ATinyRoundDoesNotSpoilTheBandwidth) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyThenPostcopy, 0);
  advisor.AddRound(Round(1, 1'000'000));
  RoundFigures tiny = Round(2, 500'000);
  tiny.sent = ByteCount((4 << 20) - 1);
  EXPECT_EQ(advisor.AddRound(tiny).reason,
            "one more round: 500000 pages are dirty after round 2, 1953 ms at "
            "1000 MiB/s");
  RoundFigures large_enough = Round(3, 250'000);
  large_enough.sent = ByteCount(4 << 20);
  EXPECT_EQ(advisor.AddRound(large_enough).reason,
            "one more round: 250000 pages are dirty after round 3, 244141 ms "
            "at 4 MiB/s");
}

TEST(SwitchOverAdviceTest, ARecommendationStays) {
  SwitchOverAdvisor advisor(MigrationPolicy::kPrecopyThenPostcopy, 0);
  const std::string reason = advisor.AddRound(Round(1, 0)).reason;
  const Advice& advice = advisor.AddRound(Round(2, 10'000'000));
  EXPECT_TRUE(advice.recommended);
  EXPECT_EQ(advice.reason, reason);
}

}  // namespace
}  // namespace postcopy
