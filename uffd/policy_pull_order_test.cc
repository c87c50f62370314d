#include "uffd/policy_pull_order.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/page_state.h"

namespace postcopy {
namespace {

constexpr PageCount kMax{64};
constexpr uint64_t kFirstWindow = AroundFaultsPolicy::kFirstWindow.value();

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

constexpr PullOrderKind kEveryPage[] = {
    PullOrderKind::kAdaptive, PullOrderKind::kLinear,
    PullOrderKind::kAfterFault, PullOrderKind::kAroundFaults,
    PullOrderKind::kRecentlyDirtied};

class PolicyPullOrderTest : public testing::Test {
 protected:
  void Begin(PullOrderKind kind, const std::vector<PageRun>& set = {}) {
    order_ = NewPullOrder(kind, set);
  }
  std::optional<PageRun> Next() {
    const auto run = order_->NextRun(*state_, {}, kMax);
    if (run.has_value()) state_->MarkReceived(*run, false);
    return run;
  }
  void Fault(uint64_t page) {
    order_->OnFault(Pages(page, 1));
    state_->MarkReceived(Pages(page, 1), false);
  }

  const std::unique_ptr<PageState> state_ =
      *PageState::Create(PageCount(100000));
  std::unique_ptr<PullOrder> order_;
};

TEST_F(PolicyPullOrderTest, LinearIgnoresAllItIsTold) {
  Begin(PullOrderKind::kLinear, {Pages(500, 1)});
  order_->OnRecentlyDirtied({Pages(900, 1)});
  Fault(5000);
  EXPECT_EQ(Next(), Pages(0, 64));
  EXPECT_EQ(Next(), Pages(64, 64));
}

TEST_F(PolicyPullOrderTest, AfterFaultGoesOnBehindTheLast) {
  Begin(PullOrderKind::kAfterFault, {Pages(500, 1)});
  order_->OnRecentlyDirtied({Pages(900, 1)});
  Fault(5000);
  EXPECT_EQ(Next(), Pages(5001, 64));
}

TEST_F(PolicyPullOrderTest, AroundFaultsThenBehindTheLast) {
  Begin(PullOrderKind::kAroundFaults, {Pages(500, 1)});
  order_->OnRecentlyDirtied({Pages(900, 1)});
  Fault(5000);
  EXPECT_EQ(Next(), Pages(5001, kFirstWindow));
  EXPECT_EQ(Next(), Pages(5000 - kFirstWindow, kFirstWindow));
  EXPECT_EQ(Next(), Pages(5001 + kFirstWindow, 64));
}

TEST_F(PolicyPullOrderTest, RecentlyDirtiedThenLinear) {
  Begin(PullOrderKind::kRecentlyDirtied, {Pages(500, 1)});
  order_->OnRecentlyDirtied({Pages(900, 2), Pages(7, 1)});
  order_->OnRecentlyDirtied({Pages(800, 1)});
  Fault(5000);
  EXPECT_EQ(Next(), Pages(900, 2));
  EXPECT_EQ(Next(), Pages(7, 1));
  EXPECT_EQ(Next(), Pages(800, 1));
  EXPECT_EQ(Next(), Pages(0, 7));
}

TEST_F(PolicyPullOrderTest, AdaptiveHasAllInTurn) {
  Begin(PullOrderKind::kAdaptive, {Pages(500, 1), Pages(400, 1)});
  order_->OnRecentlyDirtied({Pages(900, 2)});
  Fault(5000);
  EXPECT_EQ(Next(), Pages(500, 1));
  EXPECT_EQ(Next(), Pages(400, 1));
  EXPECT_EQ(Next(), Pages(5001, kFirstWindow));
  EXPECT_EQ(Next(), Pages(5000 - kFirstWindow, kFirstWindow));
  EXPECT_EQ(Next(), Pages(900, 2));
  EXPECT_EQ(Next(), Pages(5001 + kFirstWindow, 64));
}

TEST_F(PolicyPullOrderTest, AWorkingSetOfAnotherGuestLetsOthersGoFirst) {
  Begin(PullOrderKind::kAdaptive, {Pages(500, 1), Pages(400, 1)});
  for (int i = 0; i < RunListPolicy::kFaultsJudged; ++i) Fault(20000 + i);
  const std::optional<PageRun> next = Next();
  ASSERT_TRUE(next.has_value());
  EXPECT_EQ(next->first, PageIndex(20000 + RunListPolicy::kFaultsJudged));
  // It is not forgotten.
  while (!state_->IsReceived(PageIndex(400))) {
    ASSERT_LT(state_->missing(), PageCount(100000));
    Next();
  }
}

TEST_F(PolicyPullOrderTest, DirtiedPagesThatNobodyTouchesGiveWay) {
  Begin(PullOrderKind::kAdaptive);
  order_->OnRecentlyDirtied({Pages(500, 100)});
  for (int i = 0; i < RunListPolicy::kFaultsJudged; ++i) {
    Fault(20000 + 1000 * i);
  }
  while (const std::optional<PageRun> run = Next()) {
    if (run->first > PageIndex(52000)) break;  // behind the last fault
    ASSERT_FALSE(Pages(500, 100).Contains(run->first));
  }
}

TEST_F(PolicyPullOrderTest, AWorkingSetAloneLeavesTheRestToBeTouched) {
  Begin(PullOrderKind::kWorkingSetOnly, {Pages(500, 1), Pages(400, 1)});
  Fault(5000);
  order_->OnRecentlyDirtied({Pages(900, 1)});
  EXPECT_EQ(Next(), Pages(500, 1));
  EXPECT_EQ(Next(), Pages(400, 1));
  EXPECT_EQ(Next(), std::nullopt);
}

TEST_F(PolicyPullOrderTest, KeepsSoManyRunsOfTheDirtiedAndNotOneMore) {
  const auto state =
      *PageState::Create(PageCount(2 * kRecentlyDirtiedRunsMax + 4));
  Begin(PullOrderKind::kRecentlyDirtied);
  // The last pages first, two apart.
  const auto run_of = [](uint64_t i) {
    return Pages(2 * (kRecentlyDirtiedRunsMax + 1) - 2 * i, 1);
  };
  std::vector<PageRun> runs;
  for (uint64_t i = 0; i < kRecentlyDirtiedRunsMax - 1; ++i) {
    runs.push_back(run_of(i));
  }
  order_->OnRecentlyDirtied(runs);
  order_->OnRecentlyDirtied(
      {run_of(kRecentlyDirtiedRunsMax - 1), run_of(kRecentlyDirtiedRunsMax)});
  order_->OnRecentlyDirtied({run_of(kRecentlyDirtiedRunsMax)});
  for (uint64_t i = 0; i < kRecentlyDirtiedRunsMax; ++i) {
    ASSERT_EQ(order_->NextRun(*state, {}, kMax), run_of(i));
    state->MarkReceived(run_of(i), false);
  }
  EXPECT_EQ(order_->NextRun(*state, {}, kMax), Pages(0, 4));
}

// Whatever the guest does and the source says: each page is asked for once, and
// none twice, if what was asked for comes.
TEST(PullOrderPropertyTest, EveryPageIsAskedForOnce) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    for (const PullOrderKind kind : kEveryPage) {
      SCOPED_TRACE(testing::Message()
                   << "seed " << seed << ", kind " << static_cast<int>(kind));
      std::mt19937_64 random(seed);
      const uint64_t pages = 1 + random() % 20000;
      const auto state = *PageState::Create(PageCount(pages));
      const auto any_runs = [&](uint64_t count) {
        std::vector<PageRun> runs;
        for (uint64_t i = 0; i < count; ++i) {
          const uint64_t first = random() % pages;
          runs.push_back(Pages(first, std::min(pages - first, random() % 100)));
        }
        return runs;
      };
      const auto order = NewPullOrder(kind, any_runs(random() % 100));
      std::vector<int> asked(pages, 0);
      std::deque<PageRun> requested;
      uint64_t walk = random() % pages;
      while (true) {
        if (random() % 50 == 0) {
          order->OnRecentlyDirtied(any_runs(random() % 50));
        }
        if (random() % 2 == 0) {
          walk = random() % 4 == 0
                     ? random() % pages
                     : (walk + pages - 20 + random() % 40) % pages;
          const PageIndex page(walk);
          bool under_way = state->IsReceived(page);
          for (const PageRun& run : requested) {
            under_way = under_way || run.Contains(page);
          }
          if (!under_way) {
            order->OnFault({page, PageCount(1)});
            state->MarkReceived({page, PageCount(1)}, random() % 2 == 0);
            ++asked[walk];
          }
        }
        const std::vector<PageRun> now(requested.begin(), requested.end());
        const uint64_t max = 1 + random() % 64;
        const auto run = order->NextRun(*state, now, PageCount(max));
        if (run.has_value()) {
          ASSERT_GE(run->count.value(), 1u);
          ASSERT_LE(run->count.value(), max);
          ASSERT_LE(run->end().value(), pages);
          for (PageIndex p = run->first; p < run->end(); p += PageCount(1)) {
            ++asked[p.value()];
          }
          requested.push_back(*run);
        }
        if (!requested.empty() &&
            (!run.has_value() || random() % 2 == 0 || requested.size() == 16)) {
          state->MarkReceived(requested.front(), false);
          requested.pop_front();
        } else if (requested.empty() && !run.has_value()) {
          break;
        }
      }
      EXPECT_EQ(state->missing(), PageCount(0));
      for (uint64_t page = 0; page < pages; ++page) {
        ASSERT_EQ(asked[page], 1) << "page " << page;
      }
    }
  }
}

// Orders that follow faults have at most one full run and a little more in
// flight while there are some, so that the next one is asked for soon.
class FollowingTest : public PolicyPullOrderTest {
 protected:
  // What is asked for beside runs that are in flight.
  std::optional<PageRun> NextBeside(std::vector<PageRun> in_flight) {
    return order_->NextRun(*state_, in_flight, kMax);
  }
  // Too much for who follows, by a page.
  static std::vector<PageRun> Full() {
    return {Pages(90000, kFollowingPages.value() - 1), Pages(91000, 1)};
  }
};

TEST_F(FollowingTest, AsksForLessAheadWhileFaultsCome) {
  for (const PullOrderKind kind :
       {PullOrderKind::kAdaptive, PullOrderKind::kAroundFaults}) {
    Begin(kind);
    EXPECT_TRUE(NextBeside(Full()).has_value());  // no fault has come
    Fault(kind == PullOrderKind::kAdaptive ? 5000 : 50000);
    EXPECT_FALSE(NextBeside(Full()).has_value());
    // Fewer pages, or one run, however large.
    EXPECT_TRUE(
        NextBeside({Pages(90000, kFollowingPages.value() - 2), Pages(91000, 1)})
            .has_value());
    EXPECT_TRUE(NextBeside({Pages(90000, 512)}).has_value());
    // Two have been given.
    for (uint32_t i = 2; i < kCalmRuns; ++i) {
      EXPECT_FALSE(NextBeside(Full()).has_value());
      EXPECT_TRUE(Next().has_value());
    }
    EXPECT_TRUE(NextBeside(Full()).has_value());
  }
}

TEST_F(FollowingTest, FaultsAtRandomHoldNothingBack) {
  Begin(PullOrderKind::kAdaptive);
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    Fault(random() % 90000);
    Next();
  }
  Fault(random() % 90000);
  EXPECT_TRUE(NextBeside(Full()).has_value());
}

TEST_F(FollowingTest, WhoeverDoesNotFollowHoldsNothingBack) {
  for (const PullOrderKind kind :
       {PullOrderKind::kLinear, PullOrderKind::kRecentlyDirtied}) {
    Begin(kind);
    Fault(5000);
    EXPECT_TRUE(NextBeside(Full()).has_value());
  }
}

// The three threads of an order at once.
TEST(PullOrderThreadsTest, FaultsAndStatisticsComeWhileItIsAsked) {
  constexpr uint64_t kPages = 50000;
  for (const PullOrderKind kind : kEveryPage) {
    const auto state = *PageState::Create(PageCount(kPages));
    const auto order = NewPullOrder(kind);
    std::atomic<bool> done{false};
    std::thread faults([&] {
      for (uint64_t i = 0; !done.load(); ++i) {
        order->OnFault(Pages(i * 7919 % kPages, 1));
      }
    });
    std::thread dirtied([&] {
      for (uint64_t i = 0; !done.load(); ++i) {
        order->OnRecentlyDirtied({Pages(i * 104729 % kPages, 1)});
      }
    });
    while (const auto run = order->NextRun(*state, {}, kMax)) {
      state->MarkReceived(*run, false);
    }
    done.store(true);
    faults.join();
    dirtied.join();
    EXPECT_EQ(state->missing(), PageCount(0));
  }
}

}  // namespace
}  // namespace postcopy
