#include "uffd/run_list_policy.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/page_state.h"

namespace postcopy {
namespace {

constexpr PageCount kMax{64};

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

class RunListPolicyTest : public testing::Test {
 protected:
  std::optional<PageRun> Next() {
    const std::optional<PageRun> run = policy_.NextRun(pages_, kMax);
    if (run.has_value()) state_->MarkReceived(*run, false);
    return run;
  }
  void Fault(uint64_t page, uint64_t count = 1) {
    policy_.NoteFault(Pages(page, count));
    state_->MarkReceived(Pages(page, count), false);
  }

  const std::unique_ptr<PageState> state_ =
      *PageState::Create(PageCount(10000));
  const FetchablePages pages_{state_.get(), {}};
  RunListPolicy policy_{RunListPolicy::Faults::kFollow};
};

TEST_F(RunListPolicyTest, SaysNothingWithoutAList) {
  EXPECT_EQ(Next(), std::nullopt);
  Fault(7);
  EXPECT_EQ(Next(), std::nullopt);
  EXPECT_FALSE(policy_.Doubtful());
}

TEST_F(RunListPolicyTest, GoesThroughTheListAsItIs) {
  policy_.Append({Pages(500, 70), Pages(100, 0), Pages(10, 3)});
  policy_.Append({Pages(300, 1)});
  EXPECT_EQ(policy_.size(), 3u);
  EXPECT_EQ(Next(), Pages(500, 64));
  EXPECT_EQ(Next(), Pages(564, 6));
  EXPECT_EQ(Next(), Pages(10, 3));
  EXPECT_EQ(Next(), Pages(300, 1));
  EXPECT_EQ(Next(), std::nullopt);
  // What comes later is taken up.
  policy_.Append({Pages(20, 1)});
  EXPECT_EQ(Next(), Pages(20, 1));
}

TEST_F(RunListPolicyTest, LeavesOutWhatIsHere) {
  policy_.Append({Pages(500, 10), Pages(10, 3)});
  state_->MarkReceived(Pages(503, 4), false);
  state_->MarkReceived(Pages(10, 3), true);
  EXPECT_EQ(Next(), Pages(500, 3));
  EXPECT_EQ(Next(), Pages(507, 3));
  EXPECT_EQ(Next(), std::nullopt);
}

TEST_F(RunListPolicyTest, GoesOnWhereTheGuestIsAndThenToWhatWasPassedOver) {
  policy_.Append({Pages(500, 2), Pages(100, 2), Pages(900, 4), Pages(50, 2)});
  Fault(901);
  EXPECT_EQ(Next(), Pages(900, 1));
  EXPECT_EQ(Next(), Pages(902, 2));
  EXPECT_EQ(Next(), Pages(50, 2));
  EXPECT_EQ(Next(), Pages(500, 2));
  EXPECT_EQ(Next(), Pages(100, 2));
  EXPECT_EQ(Next(), std::nullopt);
}

TEST_F(RunListPolicyTest, AFaultOnWhatWasPassedOverDoesNotTurnItBack) {
  policy_.Append({Pages(500, 2), Pages(100, 2), Pages(900, 4)});
  Fault(100);
  Fault(500);
  EXPECT_EQ(Next(), Pages(101, 1));
}

TEST_F(RunListPolicyTest, AHugePageHoldsPagesOfTheList) {
  policy_.Append({Pages(5000, 2), Pages(600, 2), Pages(2000, 1)});
  Fault(512, 512);
  EXPECT_EQ(Next(), Pages(2000, 1));
}

TEST_F(RunListPolicyTest, WithoutOrderInTimeFaultsDoNotMoveIt) {
  RunListPolicy policy(RunListPolicy::Faults::kIgnore);
  policy.Append({Pages(500, 2), Pages(100, 2)});
  policy.NoteFault(Pages(100, 1));
  EXPECT_EQ(policy.NextRun(pages_, kMax), Pages(500, 2));
}

TEST_F(RunListPolicyTest, IsDoubtedOnceNearlyAllFaultsAreElsewhere) {
  policy_.Append({Pages(500, 64)});
  for (int i = 1; i < RunListPolicy::kFaultsJudged; ++i) {
    Fault(1000 + 10 * i);
    EXPECT_FALSE(policy_.Doubtful()) << i;
  }
  Fault(2000);
  EXPECT_TRUE(policy_.Doubtful());
  constexpr int kHits =
      RunListPolicy::kFaultsJudged - RunListPolicy::kFaultsElsewhere;
  for (int i = 0; i < kHits; ++i) Fault(500 + i);
  EXPECT_TRUE(policy_.Doubtful());
  Fault(540);
  EXPECT_FALSE(policy_.Doubtful());
}

}  // namespace
}  // namespace postcopy
