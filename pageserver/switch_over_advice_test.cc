#include "pageserver/switch_over_advice.h"

#include <string>
#include <tuple>

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
  const SwitchOverAdvisor advisor(
      {.policy = MigrationPolicy::kPrecopyThenPostcopy});
  EXPECT_FALSE(advisor.advice().recommended);
  EXPECT_EQ(advisor.advice().reason, "the first round is not finished");
}

// 50 ms at 1000 MiB/s are 50 MiB, 12800 pages.
TEST(SwitchOverAdviceTest, ConvergedAtTheDowntimeTarget) {
  for (MigrationPolicy policy :
       {MigrationPolicy::kPrecopyThenPostcopy, MigrationPolicy::kPrecopyOnly}) {
    SwitchOverAdvisor advisor({.policy = policy});
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
  SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPrecopyThenPostcopy});
  EXPECT_TRUE(advisor.AddRound(Round(1, 0)).recommended);
}

// Nothing sent, no time passed: no division by zero.
TEST(SwitchOverAdviceTest, AnEmptyRound) {
  SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPrecopyThenPostcopy});
  const Advice& advice = advisor.AddRound({.round = 1});
  EXPECT_TRUE(advice.recommended);
}

TEST(SwitchOverAdviceTest, NotConvergingTakesTwoRoundsRunning) {
  SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPrecopyThenPostcopy});
  EXPECT_FALSE(advisor.AddRound(Round(1, 256000)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(2, 256000)).recommended);
  const Advice& advice = advisor.AddRound(Round(3, 256000));
  EXPECT_TRUE(advice.recommended);
  EXPECT_EQ(advice.reason,
            "switch now: not converging: dirty rate 1000 MiB/s: 256000 pages "
            "are dirty after round 3, 1000 ms at 1000 MiB/s");
}

TEST(SwitchOverAdviceTest, ARoundOfProgressStartsTheCountAgain) {
  SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPrecopyThenPostcopy});
  EXPECT_FALSE(advisor.AddRound(Round(1, 1'000'000)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(2, 1'000'000)).recommended);
  // One page below seven tenths is progress.
  EXPECT_FALSE(advisor.AddRound(Round(3, 699'999)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(4, 699'999)).recommended);
  EXPECT_TRUE(advisor.AddRound(Round(5, 699'999)).recommended);
}

TEST(SwitchOverAdviceTest, ExactlySevenTenthsIsNoProgress) {
  SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPrecopyThenPostcopy});
  EXPECT_FALSE(advisor.AddRound(Round(1, 1'000'000)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(2, 700'000)).recommended);
  EXPECT_TRUE(advisor.AddRound(Round(3, 490'000)).recommended);
}

// A lane that broke in round 1 makes round 2 the first that is told.
TEST(SwitchOverAdviceTest, TheFirstRoundToldHasNothingToCompareWith) {
  SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPrecopyThenPostcopy});
  EXPECT_FALSE(advisor.AddRound(Round(2, 256000)).recommended);
  EXPECT_FALSE(advisor.AddRound(Round(3, 256000)).recommended);
  EXPECT_TRUE(advisor.AddRound(Round(4, 256000)).recommended);
}

TEST(SwitchOverAdviceTest, RoundsMax) {
  SwitchOverAdvisor advisor(
      {.policy = MigrationPolicy::kPrecopyOnly, .rounds_max = 3});
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
  SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPrecopyOnly});
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
  const SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPostcopyOnly});
  EXPECT_TRUE(advisor.advice().recommended);
  EXPECT_EQ(advisor.advice().reason, "switch now: the policy is postcopy-only");
}

// A round of a few pages measures round trips. Were it believed, 20000 pages
// would seem to take minutes.
TEST(SwitchOverAdviceTest, ATinyRoundDoesNotSpoilTheBandwidth) {
  SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPrecopyThenPostcopy});
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
  SwitchOverAdvisor advisor({.policy = MigrationPolicy::kPrecopyThenPostcopy});
  const std::string reason = advisor.AddRound(Round(1, 0)).reason;
  const Advice& advice = advisor.AddRound(Round(2, 10'000'000));
  EXPECT_TRUE(advice.recommended);
  EXPECT_EQ(advice.reason, reason);
}

TEST(SwitchOverAdviceTest, VerdictsAreNamed) {
  SwitchOverAdvisor advisor({.rounds_max = 2});
  EXPECT_EQ(advisor.advice().verdict, Verdict::kWait);
  EXPECT_EQ(advisor.AddRound(Round(1, 256000)).verdict, Verdict::kWait);
  EXPECT_EQ(advisor.AddRound(Round(2, 256000)).verdict, Verdict::kRoundsUsedUp);
  SwitchOverAdvisor idle({});
  EXPECT_EQ(idle.AddRound(Round(1, 0)).verdict, Verdict::kConverged);
  const SwitchOverAdvisor none({.policy = MigrationPolicy::kPostcopyOnly});
  EXPECT_EQ(none.advice().verdict, Verdict::kPolicy);
}

// 410 MiB/s are written and 380 sent: the clock of the writes is not that of
// the sending, which a short round does not fill.
TEST(SwitchOverAdviceTest, ADirtyRateAboveTheBandwidthIsNamed) {
  SwitchOverAdvisor advisor({});
  const uint64_t dirty = uint64_t{820} << 8;
  for (uint32_t round = 1; round <= 3; ++round) {
    advisor.AddRound({.round = round,
                      .sent = ByteCount(uint64_t{380} << 20),
                      .nanos = kNanosPerSecond,
                      .dirty_after = PageCount(dirty),
                      .dirty_nanos = 2 * kNanosPerSecond});
  }
  EXPECT_EQ(advisor.advice().verdict, Verdict::kNotConverging);
  EXPECT_EQ(advisor.advice().reason,
            "switch now: dirty rate 410 MiB/s exceeds 380 MiB/s bandwidth: "
            "209920 pages are dirty after round 3, 2158 ms at 380 MiB/s");
}

TEST(SwitchOverAdviceTest, TheDeadlineAndAMomentBefore) {
  SwitchOverAdvisor advisor({.deadline_nanos = 90 * kNanosPerSecond});
  advisor.AddTime(90 * kNanosPerSecond - 1);
  EXPECT_FALSE(advisor.advice().recommended);
  advisor.AddTime(90 * kNanosPerSecond);
  EXPECT_EQ(advisor.advice().verdict, Verdict::kDeadline);
  EXPECT_EQ(advisor.advice().reason,
            "switch now: 90.0 s of precopy are over, and the deadline is 90.0 "
            "s");
  SwitchOverAdvisor without({});
  without.AddTime(3600 * kNanosPerSecond);
  EXPECT_FALSE(without.advice().recommended);
}

// --- Estimates.

constexpr PageCount kGiB{262144};

TEST(SwitchOverEstimateTest, NothingIsKnownAtFirst) {
  const SwitchOverAdvisor advisor({.total = kGiB});
  const Estimate estimate = advisor.EstimateFor(kGiB, ByteCount(0));
  EXPECT_EQ(estimate.dirty_bytes_per_second, -1);
  EXPECT_EQ(estimate.bandwidth_bytes_per_second, -1);
  EXPECT_EQ(estimate.remaining_precopy_nanos, -1);
  EXPECT_EQ(estimate.downtime_nanos, -1);
  EXPECT_EQ(estimate.stall_nanos, -1);
  EXPECT_EQ(estimate.unsent, BytesIn(kGiB));
}

// The limit is all that is known, and it is no less than what there is.
TEST(SwitchOverEstimateTest, ALimitStandsForTheBandwidth) {
  const SwitchOverAdvisor advisor({.total = kGiB});
  const Estimate estimate =
      advisor.EstimateFor(kGiB, ByteCount(uint64_t{256} << 20));
  EXPECT_EQ(estimate.bandwidth_bytes_per_second, 256 << 20);
  EXPECT_EQ(estimate.remaining_precopy_nanos, 4 * kNanosPerSecond);
  EXPECT_EQ(estimate.stall_nanos, 4 * kNanosPerSecond);
  EXPECT_EQ(estimate.downtime_nanos, -1) << "nobody has acknowledged";
}

TEST(SwitchOverEstimateTest, TheFirstRoundIsMeasuredWhileItGoesOn) {
  SwitchOverAdvisor advisor({.total = kGiB});
  advisor.AddPart(ByteCount((4 << 20) - 1), kNanosPerSecond);
  EXPECT_EQ(advisor.EstimateFor(kGiB, ByteCount(0)).bandwidth_bytes_per_second,
            -1);
  advisor.AddPart(ByteCount(64 << 20), kNanosPerSecond);
  const Estimate estimate = advisor.EstimateFor(PageCount(32768), ByteCount(0));
  EXPECT_EQ(estimate.bandwidth_bytes_per_second, 64 << 20);
  EXPECT_EQ(estimate.remaining_precopy_nanos, 2 * kNanosPerSecond);
}

// 512 MiB dirty at 1000 MiB/s, half as much written as sent: 512 + 256 + 128 +
// 64 MiB, then 32 are less than 50 ms.
TEST(SwitchOverEstimateTest, RoundsThatShrinkAddUp) {
  SwitchOverAdvisor advisor({.total = kGiB});
  advisor.AddRound({.round = 1,
                    .sent = kMiB1000,
                    .nanos = kNanosPerSecond,
                    .dirty_after = PageCount(500 << 8)});
  const Estimate estimate =
      advisor.EstimateFor(PageCount(512 << 8), ByteCount(0));
  EXPECT_EQ(estimate.dirty_bytes_per_second, int64_t{500} << 20);
  EXPECT_EQ(estimate.remaining_precopy_nanos, 960 * kNanosPerMilli);
  EXPECT_EQ(estimate.stall_nanos, 512 * kNanosPerMilli);
  // At the target nothing is left to do.
  EXPECT_EQ(advisor.EstimateFor(PageCount(50 << 8), ByteCount(0))
                .remaining_precopy_nanos,
            0);
}

// More rounds do not lead there: not at 500 MiB/s, and not with a limit of 400.
TEST(SwitchOverEstimateTest, NeverIsNotKnown) {
  SwitchOverAdvisor advisor({.total = kGiB});
  advisor.AddRound({.round = 1,
                    .sent = kMiB1000,
                    .nanos = kNanosPerSecond,
                    .dirty_after = PageCount(500 << 8)});
  for (const uint64_t mib : {500, 400}) {
    const Estimate estimate =
        advisor.EstimateFor(PageCount(500 << 8), ByteCount(mib << 20));
    EXPECT_EQ(estimate.bandwidth_bytes_per_second, mib << 20);
    EXPECT_EQ(estimate.remaining_precopy_nanos, -1);
  }
}

// So many rounds and not one more: then the source recommends it anyway.
TEST(SwitchOverEstimateTest, RoundsMaxIsTheEnd) {
  SwitchOverAdvisor advisor({.rounds_max = 3, .total = kGiB});
  advisor.SetDirtyRate(uint64_t{999} << 20);
  const Estimate estimate = advisor.EstimateFor(
      PageCount(1000 << 8), ByteCount(uint64_t{1000} << 20));
  EXPECT_NEAR(static_cast<double>(estimate.remaining_precopy_nanos), 2.997e9,
              1e6);
}

// 2 ms for acknowledgements; one bit for each page: 32 KiB at 32 MiB/s.
TEST(SwitchOverEstimateTest, TheDowntimeOfEachPolicy) {
  for (const auto& [policy, downtime_ms, stall_ms] :
       {std::tuple(MigrationPolicy::kPrecopyThenPostcopy, 2.98, 1000.0),
        std::tuple(MigrationPolicy::kPostcopyOnly, 2.98, 1000.0),
        std::tuple(MigrationPolicy::kPrecopyOnly, 1002.0, 0.0)}) {
    SwitchOverAdvisor advisor({.policy = policy, .total = kGiB});
    advisor.AddAck(7 * kNanosPerMilli);
    advisor.AddAck(1 * kNanosPerMilli);
    advisor.AddAck(5 * kNanosPerMilli);
    const Estimate estimate =
        advisor.EstimateFor(PageCount(32 << 8), ByteCount(32 << 20));
    EXPECT_NEAR(static_cast<double>(estimate.downtime_nanos) / kNanosPerMilli,
                downtime_ms, 0.01);
    EXPECT_EQ(static_cast<double>(estimate.stall_nanos) / kNanosPerMilli,
              stall_ms);
  }
}

// A recommendation stays, but what it is weighed by goes on.
TEST(SwitchOverEstimateTest, GoesOnAfterTheRecommendation) {
  SwitchOverAdvisor advisor({.total = kGiB});
  EXPECT_TRUE(advisor.AddRound(Round(1, 0)).recommended);
  advisor.AddRound(Round(2, 100 << 8));
  EXPECT_EQ(
      advisor.EstimateFor(PageCount(0), ByteCount(0)).dirty_bytes_per_second,
      100 << 20);
}

}  // namespace
}  // namespace postcopy
