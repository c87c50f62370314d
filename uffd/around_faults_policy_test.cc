#include "uffd/around_faults_policy.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/page_state.h"

namespace postcopy {
namespace {

constexpr PageCount kMax{64};
constexpr uint64_t kFirst = AroundFaultsPolicy::kFirstWindow.value();
constexpr uint64_t kNear = AroundFaultsPolicy::kNear.value();
constexpr uint64_t kReach = AroundFaultsPolicy::kReach.value();
constexpr uint64_t kLargest = AroundFaultsPolicy::kLargestWindow.value();
constexpr uint64_t kPages = 1 << 20;

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

class AroundFaultsPolicyTest : public testing::Test {
 protected:
  // The guest misses `page`, and gets it.
  void Fault(uint64_t page, uint64_t count = 1) {
    policy_.NoteFault(Pages(page, count));
    state_->MarkReceived(Pages(page, count), false);
  }
  std::optional<PageRun> Next() {
    const std::optional<PageRun> run = policy_.NextRun(pages_, kMax);
    if (run.has_value()) state_->MarkReceived(*run, false);
    return run;
  }
  // Everything that it would ask for now: how many pages, from where to where.
  struct Asked {
    uint64_t pages = 0;
    uint64_t low = UINT64_MAX;
    uint64_t high = 0;
  };
  Asked AskAll() {
    Asked asked;
    while (const std::optional<PageRun> run = Next()) {
      asked.pages += run->count.value();
      asked.low = std::min(asked.low, run->first.value());
      asked.high = std::max(asked.high, run->end().value());
    }
    return asked;
  }

  const std::unique_ptr<PageState> state_ =
      *PageState::Create(PageCount(kPages));
  const FetchablePages pages_{state_.get(), {}};
  AroundFaultsPolicy policy_;
};

TEST_F(AroundFaultsPolicyTest, SaysNothingWithoutAFault) {
  EXPECT_EQ(Next(), std::nullopt);
}

TEST_F(AroundFaultsPolicyTest, BeginsOnBothSidesOfAFault) {
  Fault(1000);
  EXPECT_EQ(Next(), Pages(1001, kFirst));
  EXPECT_EQ(Next(), Pages(1000 - kFirst, kFirst));
  EXPECT_EQ(Next(), std::nullopt);
}

TEST_F(AroundFaultsPolicyTest, StaysInTheVm) {
  Fault(0);
  EXPECT_EQ(AskAll().pages, kFirst);
  Fault(kPages - 1);
  EXPECT_EQ(AskAll().pages, kFirst);
}

TEST_F(AroundFaultsPolicyTest, AHugePageIsPassedAsAWhole) {
  Fault(512, 512);
  EXPECT_EQ(Next(), Pages(1024, kFirst));
  EXPECT_EQ(Next(), Pages(512 - kFirst, kFirst));
  // Beside it is not farther than its own size.
  Fault(1536, 512);
  EXPECT_EQ(Next(), Pages(2048, 2 * kFirst));
}

TEST_F(AroundFaultsPolicyTest, TheWindowGrowsWhereItPays) {
  Fault(1000);
  AskAll();
  uint64_t edge = 1001 + kFirst;
  for (uint64_t window = 2 * kFirst; window <= kLargest; window *= 2) {
    Fault(edge);
    const Asked asked = AskAll();
    EXPECT_EQ(asked.high, edge + 1 + window);
    edge = asked.high;
  }
  // The largest, and none larger; and long since nothing on the other side.
  Fault(edge);
  const Asked asked = AskAll();
  EXPECT_EQ(asked.pages, kLargest);
  EXPECT_EQ(asked.low, edge + 1);
}

TEST_F(AroundFaultsPolicyTest, TheWindowGrowsDownwardsToo) {
  Fault(500000);
  AskAll();
  uint64_t edge = 500000 - kFirst;
  for (uint64_t window = 2 * kFirst; window <= kLargest; window *= 2) {
    Fault(edge - 1);
    const Asked asked = AskAll();
    EXPECT_EQ(asked.low, edge - 1 - window);
    edge = asked.low;
  }
  Fault(edge - 1);
  const Asked asked = AskAll();
  EXPECT_EQ(asked.pages, kLargest);
  EXPECT_EQ(asked.high, edge - 1);
}

TEST_F(AroundFaultsPolicyTest, AGuestThatTurnsRoundIsFollowed) {
  Fault(500000);
  AskAll();
  uint64_t high = 500001 + kFirst;
  for (int i = 0; i < 5; ++i) {
    Fault(high);
    high = AskAll().high;
  }
  const uint64_t low = 500000 - kFirst - 8;
  Fault(low);
  const Asked asked = AskAll();
  EXPECT_EQ(asked.high, low);
  EXPECT_GE(asked.pages, kFirst);
}

TEST_F(AroundFaultsPolicyTest, AFaultJustOutsideGoesOnAndOneFartherDoesNot) {
  Fault(1000);
  AskAll();
  const uint64_t edge = 1001 + kFirst;
  Fault(edge + kNear);
  EXPECT_EQ(Next(), Pages(edge + kNear + 1, 2 * kFirst));
  AskAll();
  const uint64_t next_edge = edge + kNear + 1 + 2 * kFirst;
  Fault(next_edge + kNear + 1);
  EXPECT_EQ(Next(), Pages(next_edge + kNear + 2, kFirst));
}

TEST_F(AroundFaultsPolicyTest, TheWindowCountsMissingPagesOnly) {
  for (uint64_t page = 1001; page < 2000; page += 2) {
    state_->MarkReceived(Pages(page, 1), false);
  }
  Fault(1000);
  for (uint64_t i = 0; i < kFirst; ++i) {
    EXPECT_EQ(Next(), Pages(1002 + 2 * i, 1));
  }
  EXPECT_LT(Next()->first, PageIndex(1000));
}

TEST_F(AroundFaultsPolicyTest, AFaultOnAPageThatIsUnderWayKeepsTheWindow) {
  policy_.NoteFault(Pages(1000, 1));
  const std::vector<PageRun> requested = {*policy_.NextRun(pages_, kMax)};
  const FetchablePages now(state_.get(), requested);
  policy_.NoteFault(Pages(1001, 1));
  EXPECT_EQ(policy_.NextRun(now, kMax), Pages(1000 - kFirst, kFirst));
  EXPECT_EQ(policy_.NextRun(now, kMax), std::nullopt);
}

TEST_F(AroundFaultsPolicyTest, FollowsAsManyStreamsAsItHas) {
  constexpr uint64_t kApart = kPages / (AroundFaultsPolicy::kStreams + 1);
  // The first faults of all of them; then each goes on from its edge.
  for (uint64_t i = 0; i < AroundFaultsPolicy::kStreams; ++i) {
    Fault(100 + i * kApart);
    AskAll();
  }
  for (uint64_t i = 0; i < AroundFaultsPolicy::kStreams; ++i) {
    const uint64_t edge = 101 + kFirst + i * kApart;
    Fault(edge);
    EXPECT_EQ(Next(), Pages(edge + 1, 2 * kFirst)) << i;
    AskAll();
  }
  // One more takes the place of the oldest.
  Fault(100 + AroundFaultsPolicy::kStreams * kApart);
  AskAll();
  const uint64_t second_edge = 102 + kFirst + 2 * kFirst + kApart;
  Fault(second_edge);
  EXPECT_EQ(Next(), Pages(second_edge + 1, 4 * kFirst));
  AskAll();
  const uint64_t first_edge = 102 + kFirst + 2 * kFirst;
  Fault(first_edge);
  EXPECT_EQ(Next(), Pages(first_edge + 1, kFirst));
}

TEST_F(AroundFaultsPolicyTest, AtRandomItGivesWay) {
  uint64_t asked_late = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    // A page that has not been near any before it.
    Fault(2 * kNear + i * (kPages / 201));
    const uint64_t asked = AskAll().pages;
    if (i >= 100) asked_late += asked;
  }
  EXPECT_EQ(asked_late, 0u);
  EXPECT_EQ(policy_.first_window(), PageCount(0));
  // And finds its way back once faults lie beside each other.
  for (uint64_t page = 5000; page < 5400; page += 20) {
    for (uint64_t i = 0; i < 8; ++i) Fault(page + i * 10000);
  }
  EXPECT_GT(AskAll().pages, 0u);
  EXPECT_GT(policy_.first_window(), PageCount(0));
}

TEST_F(AroundFaultsPolicyTest, ChanceDoesNotPushOutWhatWasFollowed) {
  Fault(1000);
  AskAll();
  const uint64_t edge = 1001 + kFirst;
  Fault(edge);
  const uint64_t next_edge = AskAll().high;
  for (uint64_t i = 1; i <= 200; ++i) Fault(i * (kPages / 201));
  AskAll();
  Fault(next_edge);
  EXPECT_EQ(AskAll().high, next_edge + 1 + 4 * kFirst);
}

TEST_F(AroundFaultsPolicyTest, TheLastFaultGoesFirst) {
  Fault(1000);
  Fault(500000);
  EXPECT_EQ(Next(), Pages(500001, kFirst));
  Fault(1001);
  EXPECT_EQ(Next(), Pages(1002, 2 * kFirst));
}

TEST_F(AroundFaultsPolicyTest, LooksSoFarForMissingPagesAndNotOneFarther) {
  state_->MarkReceived(Pages(0, kPages), false);
  const auto miss = [&](uint64_t page) { state_->MarkMissing(Pages(page, 1)); };
  miss(100000 + kReach);
  miss(100000 - kReach);
  policy_.NoteFault(Pages(100000, 1));
  EXPECT_EQ(Next(), Pages(100000 + kReach, 1));
  EXPECT_EQ(Next(), Pages(100000 - kReach, 1));
  miss(200000 + kReach + 1);
  miss(200000 - kReach - 1);
  policy_.NoteFault(Pages(200000, 1));
  EXPECT_EQ(Next(), std::nullopt);
}

}  // namespace
}  // namespace postcopy
