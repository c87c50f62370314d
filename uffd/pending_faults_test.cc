#include "uffd/pending_faults.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/fault_times.h"

namespace postcopy {
namespace {

using AddResult = PendingFaults::AddResult;

TEST(PendingFaultsTest, AddsOnceAndTakesOnce) {
  const auto faults = std::make_unique<PendingFaults>();
  EXPECT_EQ(faults->Add(PageIndex(7), 100), AddResult::kNew);
  EXPECT_EQ(faults->Add(PageIndex(7), 200), AddResult::kDuplicate);
  EXPECT_EQ(faults->size(), 1u);
  EXPECT_EQ(faults->Take(PageIndex(7), 300),
            (PendingFaults::Fault{.first_read_ns = 100, .duplicated = true}));
  EXPECT_EQ(faults->Take(PageIndex(7), 300), std::nullopt);
  EXPECT_EQ(faults->size(), 0u);
}

TEST(PendingFaultsTest, AtItsLimitAndOnePast) {
  const auto faults = std::make_unique<PendingFaults>();
  for (uint64_t i = 0; i < kMaxOutstandingFaults; ++i) {
    EXPECT_EQ(faults->Room(), kMaxOutstandingFaults - i);
    EXPECT_EQ(faults->Add(PageIndex(i * 512), 1), AddResult::kNew);
  }
  EXPECT_EQ(faults->Room(), 0u);
  EXPECT_EQ(faults->Add(PageIndex(1), 1), AddResult::kFull);
  EXPECT_EQ(faults->Add(PageIndex(512), 1), AddResult::kDuplicate);
  EXPECT_TRUE(faults->Take(PageIndex(512), 1).has_value());
  EXPECT_EQ(faults->Add(PageIndex(1), 1), AddResult::kNew);
}

TEST(PendingFaultsTest, AgreesWithAMap) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const auto faults = std::make_unique<PendingFaults>();
  std::map<PageIndex, int64_t> expected;
  for (int64_t step = 0; step < 200'000; ++step) {
    // Few pages, so that chains form, break and wrap around the table's end.
    const PageIndex page(random() % 1500);
    if (random() % 2 == 0) {
      const AddResult result = faults->Add(page, step);
      if (expected.contains(page)) {
        EXPECT_EQ(result, AddResult::kDuplicate);
      } else if (expected.size() == kMaxOutstandingFaults) {
        EXPECT_EQ(result, AddResult::kFull);
      } else {
        EXPECT_EQ(result, AddResult::kNew);
        expected[page] = step;
      }
    } else if (expected.contains(page)) {
      EXPECT_EQ(faults->Take(page, step)->first_read_ns, expected[page]);
      expected.erase(page);
    } else {
      EXPECT_EQ(faults->Take(page, step), std::nullopt);
    }
    ASSERT_EQ(faults->size(), expected.size());
  }
  std::vector<PageIndex> pages(kMaxOutstandingFaults);
  pages.resize(faults->CopyTo(absl::MakeSpan(pages)));
  std::sort(pages.begin(), pages.end());
  std::vector<PageIndex> keys;
  for (const auto& [page, time] : expected) keys.push_back(page);
  EXPECT_EQ(pages, keys);
}

TEST(PendingFaultsTest, RemembersWhenItWasAsked) {
  const auto faults = std::make_unique<PendingFaults>();
  faults->Add(PageIndex(7), {.read_ns = 100, .unread_ns = 9});
  faults->Add(PageIndex(8), 100);
  const std::vector<PageIndex> asked = {PageIndex(6), PageIndex(7)};
  faults->MarkAsked(asked, 120);
  faults->MarkAsked(asked, 150);  // again: the source was lost
  EXPECT_EQ(faults->Take(PageIndex(7), 200),
            (PendingFaults::Fault{
                .first_read_ns = 100, .unread_ns = 9, .asked_ns = 150}));
  EXPECT_EQ(faults->Take(PageIndex(8), 200),
            (PendingFaults::Fault{.first_read_ns = 100}));
  EXPECT_EQ(faults->Take(PageIndex(6), 200), std::nullopt);
}

std::vector<PageIndex> Waited(const PendingFaults& faults) {
  std::vector<PageIndex> pages;
  for (size_t at = 0; const auto page = faults.NextWaited(&at);) {
    pages.push_back(*page);
  }
  std::sort(pages.begin(), pages.end());
  return pages;
}

TEST(PendingFaultsTest, AWaitMayEndBeforeTheAnswer) {
  const auto faults = std::make_unique<PendingFaults>();
  EXPECT_FALSE(faults->SomebodyWaits());
  EXPECT_EQ(faults->EndWait(PageIndex(7), 100), std::nullopt);
  faults->Add(PageIndex(7), {.read_ns = 100, .thread = 11});
  faults->Add(PageIndex(8), {.read_ns = 110, .thread = 12});
  EXPECT_TRUE(faults->SomebodyWaits());
  EXPECT_EQ(Waited(*faults),
            (std::vector<PageIndex>{PageIndex(7), PageIndex(8)}));
  EXPECT_EQ(faults->EndWait(PageIndex(7), 150),
            (PendingFaults::Fault{.first_read_ns = 100}));
  EXPECT_EQ(faults->EndWait(PageIndex(7), 160), std::nullopt);
  EXPECT_EQ(Waited(*faults), std::vector<PageIndex>{PageIndex(8)});
  EXPECT_EQ(faults->size(), 2u);
  EXPECT_EQ(faults->StalledNanos(170), 70);
  faults->Take(PageIndex(8), 200);
  EXPECT_FALSE(faults->SomebodyWaits());
  EXPECT_EQ(faults->StalledNanos(500), 100);
  // Woken already, though its message came late: it does not wait.
  EXPECT_EQ(faults->Add(PageIndex(7), {.read_ns = 600, .thread = 13}),
            AddResult::kDuplicate);
  EXPECT_FALSE(faults->SomebodyWaits());
  EXPECT_EQ(faults->Take(PageIndex(7), 700),
            (PendingFaults::Fault{
                .first_read_ns = 100, .duplicated = true, .ended = true}));
  EXPECT_EQ(faults->StalledNanos(800), 100);
  EXPECT_EQ(faults->Threads(800).threads,
            (std::vector<FaultingThread>{
                {11, 1, 50, 50}, {12, 1, 90, 90}, {13, 1, 0, 0}}));
}

TEST(PendingFaultsTest, ManyThreadsWaitForOnePage) {
  const auto faults = std::make_unique<PendingFaults>();
  faults->Add(PageIndex(7), {.read_ns = 100, .thread = 11});
  faults->Add(PageIndex(7), {.read_ns = 130, .thread = 12});
  EXPECT_EQ(faults->StalledNanos(150), 50);
  EXPECT_EQ(faults->Threads(150).threads,
            (std::vector<FaultingThread>{{11, 1, 50, 50}, {12, 1, 20, 20}}));
  faults->Take(PageIndex(7), 200);
  EXPECT_EQ(faults->Threads(300).threads,
            (std::vector<FaultingThread>{{11, 1, 100, 100}, {12, 1, 70, 70}}));
}

TEST(PendingFaultsTest, EveryWaitOfAFullTableIsSeen) {
  const auto faults = std::make_unique<PendingFaults>();
  for (uint64_t round = 0; round < 3; ++round) {
    std::vector<PageIndex> pages;
    for (uint64_t i = 0; i < kMaxOutstandingFaults; ++i) {
      pages.push_back(PageIndex(i * 512 + round));
      faults->Add(pages.back(), 1);
    }
    EXPECT_EQ(Waited(*faults), pages);
    faults->EndWaits([&](PageIndex page) { return page != pages[500]; }, 2);
    EXPECT_EQ(Waited(*faults), std::vector<PageIndex>{pages[500]});
    for (const PageIndex page : pages) faults->Take(page, 3);
    EXPECT_TRUE(Waited(*faults).empty());
  }
  EXPECT_EQ(faults->StalledNanos(9), 2);
}

// The bulk lane takes no lock; what it ended counts from when it said so.
TEST(PendingFaultsTest, APostedEndCountsFromWhenItWasPosted) {
  const auto times = std::make_unique<FaultTimes>();
  const auto faults = std::make_unique<PendingFaults>(times.get());
  faults->Add(PageIndex(7), {.read_ns = 100, .unread_ns = 9, .thread = 11});
  faults->Add(PageIndex(8), {.read_ns = 105, .thread = 12});
  const std::vector<PageIndex> asked = {PageIndex(7)};
  faults->MarkAsked(asked, 110);
  const auto is_seven = [](PageIndex page) { return page.value() == 7; };
  faults->PostEnds(is_seven, 130, 140);
  faults->PostEnds(is_seven, 150, 160);  // it has ended
  EXPECT_EQ(Waited(*faults), std::vector<PageIndex>{PageIndex(8)});
  EXPECT_EQ(times->Latency().count(), 0u);
  faults->Settle();
  EXPECT_EQ(times->Latency().count(), 1u);
  EXPECT_EQ(times->Latency().sum_ns(), 40u);
  EXPECT_EQ(times->Stages()[2].sum_ns(), 20u);
  faults->PostEnds([](PageIndex) { return true; }, 170, 180);
  EXPECT_FALSE(faults->SomebodyWaits());
  EXPECT_EQ(faults->StalledNanos(900), 80);
  EXPECT_EQ(faults->Threads(900).threads,
            (std::vector<FaultingThread>{{11, 1, 40, 40}, {12, 1, 75, 75}}));
  EXPECT_TRUE(faults->Take(PageIndex(7), 900)->ended);
  EXPECT_TRUE(faults->Take(PageIndex(8), 900)->ended);
  EXPECT_EQ(times->Latency().count(), 2u);
}

// Whoever is quicker to the lock than what was posted has the last word.
TEST(PendingFaultsTest, APostedEndOfWhatIsGoneIsNone) {
  const auto times = std::make_unique<FaultTimes>();
  const auto faults = std::make_unique<PendingFaults>(times.get());
  faults->Add(PageIndex(7), 100);
  faults->PostEnds(
      [&](PageIndex page) {
        return faults->Take(page, 120).has_value();  // just now
      },
      130, 140);
  faults->Settle();
  EXPECT_EQ(times->Latency().count(), 0u);
  EXPECT_EQ(faults->StalledNanos(500), 20);
  EXPECT_FALSE(faults->SomebodyWaits());
}

TEST(PendingFaultsTest, AllOfAFullTableCanBePosted) {
  const auto times = std::make_unique<FaultTimes>();
  const auto faults = std::make_unique<PendingFaults>(times.get());
  for (uint64_t i = 0; i < kMaxOutstandingFaults; ++i) {
    faults->Add(PageIndex(i), 10);
  }
  faults->PostEnds([](PageIndex) { return true; }, 20, 30);
  EXPECT_FALSE(faults->SomebodyWaits());
  EXPECT_EQ(faults->StalledNanos(100), 20);
  EXPECT_EQ(times->Latency().count(), kMaxOutstandingFaults);
}

// A page comes over the bulk lane while its fault is added: one of the two
// sees the other, every time, or a wait would go on for ever.
TEST(PendingFaultsTest, ABulkPageAndItsFaultDoNotMissEachOther) {
  constexpr uint64_t kRounds = 2000;
  const auto faults = std::make_unique<PendingFaults>();
  std::vector<std::atomic<bool>> received(kRounds);
  std::barrier<> round_begins(2);
  std::thread bulk([&] {
    for (uint64_t round = 0; round < kRounds; ++round) {
      round_begins.arrive_and_wait();
      received[round].store(true, std::memory_order_release);
      if (!faults->SomebodyWaits()) continue;
      faults->PostEnds([&](PageIndex page) { return page.value() == round; }, 1,
                       1);
    }
  });
  for (uint64_t round = 0; round < kRounds; ++round) {
    round_begins.arrive_and_wait();
    faults->Add(PageIndex(round), 0);
    if (received[round].load(std::memory_order_acquire)) {
      faults->Take(PageIndex(round), 1);
    }
    if (round % 500 == 499) {  // the urgent answers, at last
      for (uint64_t i = round - 499; i < round; ++i) {
        const auto fault = faults->Take(PageIndex(i), 1);
        if (fault.has_value()) {
          EXPECT_TRUE(fault->ended) << i;
        }
      }
    }
  }
  bulk.join();
  EXPECT_TRUE(Waited(*faults).empty());
  EXPECT_FALSE(faults->SomebodyWaits());
}

// The fault loop, the lanes' receivers and who asks for the numbers.
TEST(PendingFaultsTest, ManyAtOnce) {
  constexpr uint64_t kFaults = 20'000;
  constexpr uint32_t kThreads = 8;
  const auto faults = std::make_unique<PendingFaults>();
  std::atomic<int64_t> clock{0};
  std::atomic<uint64_t> asked{0};  // pages up to it are in the table or gone
  std::atomic<bool> done{false};
  std::atomic<uint64_t> taken{0};
  const auto now = [&] { return clock.fetch_add(1); };
  std::thread urgent([&] {
    for (uint64_t page = 0; page < kFaults;) {
      if (page == asked.load()) {
        std::this_thread::yield();
        continue;
      }
      if (faults->Take(PageIndex(page), now()).has_value()) ++taken;
      ++page;
    }
  });
  std::thread bulk([&] {
    while (!done.load()) {
      if (faults->SomebodyWaits()) {
        faults->PostEnds([](PageIndex page) { return page.value() % 3 == 0; },
                         now(), now());
      }
      std::this_thread::yield();
    }
  });
  std::thread reader([&] {
    int64_t before = 0;
    while (!done.load()) {
      const int64_t asked_at = now();
      const int64_t stalled = faults->StalledNanos(asked_at);
      EXPECT_GE(stalled, before);
      EXPECT_LE(stalled, now());
      before = stalled;
      for (const FaultingThread& thread : faults->Threads(now()).threads) {
        EXPECT_LE(thread.wait_max_ns, thread.wait_ns);
      }
    }
  });
  for (uint64_t page = 0; page < kFaults; ++page) {
    const PendingFaults::Message message = {
        .read_ns = now(), .thread = 1 + static_cast<uint32_t>(page) % kThreads};
    while (faults->Add(PageIndex(page), message) == AddResult::kFull) {
      std::this_thread::yield();
    }
    asked.store(page + 1);
  }
  urgent.join();
  done.store(true);
  bulk.join();
  reader.join();
  EXPECT_EQ(taken.load(), kFaults);
  EXPECT_EQ(faults->size(), 0u);
  EXPECT_FALSE(faults->SomebodyWaits());
  const int64_t end = now();
  EXPECT_EQ(faults->StalledNanos(end), faults->StalledNanos(end + 1000));
  EXPECT_LE(faults->StalledNanos(end), end);
  uint64_t faults_of_threads = 0;
  const FaultingThreads threads = faults->Threads(end);
  EXPECT_EQ(threads.threads.size(), kThreads);
  for (const FaultingThread& thread : threads.threads) {
    faults_of_threads += thread.faults;
    // Nobody's longest wait is longer than the time in which anybody waited.
    EXPECT_LE(static_cast<int64_t>(thread.wait_max_ns),
              faults->StalledNanos(end));
  }
  EXPECT_EQ(faults_of_threads, kFaults);
}

}  // namespace
}  // namespace postcopy
