#include "uffd/bulk_share.h"

#include <atomic>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

// Waits without sleeping for what another thread is bound to do.
void Until(const std::function<bool()>& condition) {
  while (!condition()) std::this_thread::yield();
}

class BulkShareTest : public testing::Test {
 protected:
  // A member with a thread that asks for one permit.
  struct Asker {
    BulkShare::Member member;
    std::optional<BulkShare::Permit> permit;
    std::thread thread;
  };

  ~BulkShareTest() override {
    for (Asker& asker : askers_) {
      share_.Interrupt(&asker.member);
      if (asker.thread.joinable()) asker.thread.join();
    }
  }

  BulkShare::Permit Take() {
    const auto permit = share_.Acquire(&own_);
    EXPECT_TRUE(permit.has_value());
    return permit.value_or(BulkShare::Permit());
  }
  void TakeAll() {
    while (share_.in_flight() < kMinBulkRequests) held_.push_back(Take());
  }

  // Number `who` of those that ask; waits when this returns.
  Asker& Wait(size_t who) {
    const size_t before = share_.waiting();
    Asker& asker = askers_.emplace_back();
    asker.thread = std::thread([this, who, &asker] {
      asker.permit = share_.Acquire(&asker.member);
      const std::lock_guard<std::mutex> lock(mutex_);
      order_.push_back(who);
    });
    Until([&] { return share_.waiting() > before; });
    return asker;
  }
  // The first `count` that Acquire has returned to, in order.
  std::vector<size_t> AwaitOrder(size_t count) {
    std::vector<size_t> order;
    Until([&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      order = order_;
      return order.size() >= count;
    });
    return order;
  }

  SimulatedClock clock_;
  BulkShare share_{kMinBulkRequests, &clock_};
  BulkShare::Member own_;
  std::vector<BulkShare::Permit> held_;
  std::deque<Asker> askers_;
  std::mutex mutex_;
  std::vector<size_t> order_;
};

TEST(BulkRequestsTest, TheLimitHasLimits) {
  EXPECT_TRUE(absl::IsInvalidArgument(CheckBulkRequests(kMinBulkRequests - 1)));
  EXPECT_TRUE(CheckBulkRequests(kMinBulkRequests).ok());
  EXPECT_TRUE(CheckBulkRequests(kDefaultBulkRequests).ok());
  EXPECT_TRUE(CheckBulkRequests(kMaxBulkRequests).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(CheckBulkRequests(kMaxBulkRequests + 1)));
}

TEST_F(BulkShareTest, AsManyAsThereAreAreTakenAtOnce) {
  TakeAll();
  EXPECT_EQ(share_.in_flight(), kMinBulkRequests);
  EXPECT_EQ(share_.waiting(), 0u);
  Wait(0);  // one past it waits
  EXPECT_EQ(share_.in_flight(), kMinBulkRequests);
  share_.Release(held_[0]);
  EXPECT_EQ(AwaitOrder(1), std::vector<size_t>{0});
  EXPECT_TRUE(askers_[0].permit.has_value());
  EXPECT_EQ(share_.in_flight(), kMinBulkRequests);
}

TEST_F(BulkShareTest, WhoWaitsIsServedInTurn) {
  TakeAll();
  for (size_t who = 0; who < 5; ++who) Wait(who);
  std::vector<size_t> expected;
  for (size_t turn = 0; turn < 5; ++turn) {
    expected.push_back(turn);
    // Two permits go round.
    share_.Release(turn < 2 ? held_[turn] : *askers_[turn - 2].permit);
    EXPECT_EQ(AwaitOrder(turn + 1), expected);
  }
  EXPECT_EQ(share_.waited(), 5u);
  EXPECT_EQ(share_.granted(), kMinBulkRequests + 5);
}

TEST_F(BulkShareTest, WhoHadATurnIsBehindAllWhoWait) {
  TakeAll();
  Wait(0);
  Wait(1);
  // The greedy one gives back and asks again, over and over.
  share_.Release(held_[0]);
  EXPECT_EQ(AwaitOrder(1), std::vector<size_t>{0});
  Wait(2);
  share_.Release(held_[1]);
  EXPECT_EQ(AwaitOrder(2), (std::vector<size_t>{0, 1}));
  share_.Release(*askers_[0].permit);
  EXPECT_EQ(AwaitOrder(3), (std::vector<size_t>{0, 1, 2}));
}

TEST_F(BulkShareTest, OneThatNeverAnswersHoldsUpOthersForATime) {
  TakeAll();
  Wait(0);
  clock_.Advance(kBulkPermitNanos - 1);
  share_.Release({});
  EXPECT_EQ(share_.expired(), 0u);
  EXPECT_EQ(share_.waiting(), 1u);
  clock_.Advance(1);
  share_.Release({});
  EXPECT_EQ(AwaitOrder(1), std::vector<size_t>{0});
  EXPECT_EQ(share_.expired(), kMinBulkRequests);
  EXPECT_EQ(share_.in_flight(), 1u);
}

TEST_F(BulkShareTest, WhoWaitsNeedsNobodyToNoticeTheTime) {
  TakeAll();
  Wait(0);
  clock_.Advance(kBulkPermitNanos);
  EXPECT_EQ(AwaitOrder(1), std::vector<size_t>{0});
}

TEST_F(BulkShareTest, WhoComesNoticesTheTime) {
  TakeAll();
  clock_.Advance(kBulkPermitNanos);
  Take();
  EXPECT_EQ(share_.in_flight(), 1u);
}

TEST_F(BulkShareTest, ALateAnswerTakesNothingFromTheNext) {
  TakeAll();
  clock_.Advance(kBulkPermitNanos);
  const BulkShare::Permit a = Take();
  const BulkShare::Permit b = Take();
  for (const BulkShare::Permit& late : held_) share_.Release(late);
  EXPECT_EQ(share_.in_flight(), kMinBulkRequests);
  share_.Release(a);
  share_.Release(a);  // twice is once
  EXPECT_EQ(share_.in_flight(), 1u);
  share_.Release(b);
  EXPECT_EQ(share_.in_flight(), 0u);
}

TEST_F(BulkShareTest, AnInterruptEndsTheWaitAndLeavesTheQueue) {
  TakeAll();
  Wait(0);
  Wait(1);
  Wait(2);
  share_.Interrupt(&askers_[1].member);
  EXPECT_EQ(AwaitOrder(1), std::vector<size_t>{1});
  EXPECT_FALSE(askers_[1].permit.has_value());
  share_.Release(held_[0]);
  share_.Release(held_[1]);
  AwaitOrder(3);
  EXPECT_TRUE(askers_[0].permit.has_value());
  EXPECT_TRUE(askers_[2].permit.has_value());
}

TEST_F(BulkShareTest, AnInterruptBeforeItEndsTheNextWaitOnly) {
  TakeAll();
  share_.Interrupt(&own_);
  EXPECT_FALSE(share_.Acquire(&own_).has_value());
  EXPECT_EQ(share_.waiting(), 0u);
  share_.Release(held_[0]);
  EXPECT_TRUE(share_.Acquire(&own_).has_value());
}

TEST_F(BulkShareTest, AMemberMayGoWithItsPermits) {
  {
    BulkShare::Member gone;
    held_.push_back(*share_.Acquire(&gone));
    held_.push_back(*share_.Acquire(&gone));
  }
  EXPECT_EQ(share_.in_flight(), kMinBulkRequests);
  clock_.Advance(kBulkPermitNanos);
  Take();
  EXPECT_EQ(share_.in_flight(), 1u);
}

// Many members that take, answer late or never, are interrupted and go: no
// permit is lost, nobody waits for ever, and there are never too many.
TEST(BulkShareConcurrencyTest, NoPermitIsLost) {
  constexpr size_t kMembers = 8;
  constexpr int kTurns = 200;
  SimulatedClock clock;
  BulkShare share(kMinBulkRequests, &clock);
  std::atomic<size_t> running{kMembers};
  std::atomic<size_t> turns{0};
  std::deque<BulkShare::Member> members(kMembers);
  std::vector<std::thread> threads;
  for (size_t who = 0; who < kMembers; ++who) {
    threads.emplace_back([&, who] {
      std::mt19937 random(who);
      for (int turn = 0; turn < kTurns; ++turn) {
        const auto permit = share.Acquire(&members[who]);
        if (!permit.has_value()) continue;
        turns.fetch_add(1);
        EXPECT_LE(share.in_flight(), kMinBulkRequests);
        if (random() % 8 != 0) share.Release(*permit);
      }
      running.fetch_sub(1);
    });
  }
  std::mt19937 random(kMembers);
  while (running.load() > 0) {
    share.Interrupt(&members[random() % kMembers]);
    clock.Advance(kBulkPermitNanos / 2);
    share.Release({});
    std::this_thread::yield();
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(turns.load(), 0u);
  EXPECT_EQ(share.waiting(), 0u);
  clock.Advance(kBulkPermitNanos);
  share.Release({});
  EXPECT_EQ(share.in_flight(), 0u);
}

}  // namespace
}  // namespace postcopy
