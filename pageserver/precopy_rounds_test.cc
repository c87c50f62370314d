#include "pageserver/precopy_rounds.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/simulated_dirty_source.h"
#include "gtest/gtest.h"
#include "pageserver/test_guest.h"

namespace postcopy {
namespace {

using absl::StatusCode;

PageRun PagesAt(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// The pages that `source` reports next.
std::set<uint64_t> CollectAll(SimulatedDirtySource& source, uint64_t pages) {
  absl::StatusOr<PageBitmap> bitmap = PageBitmap::Create(PageCount(pages));
  EXPECT_TRUE(source.Collect(bitmap->view()).ok());
  std::set<uint64_t> set;
  for (uint64_t page = 0; page < pages; ++page) {
    if (bitmap->view().Test(PageIndex(page))) set.insert(page);
  }
  return set;
}

std::set<uint64_t> Range(uint64_t first, uint64_t end) {
  std::set<uint64_t> set;
  for (uint64_t page = first; page < end; ++page) set.insert(page);
  return set;
}

class PrecopyRoundsTest : public testing::Test {
 protected:
  static constexpr uint64_t kPages = 1000;

  PrecopyRoundsTest()
      : guest_({600, 400}),
        memory_(guest_.OpenMemory()),
        dirty_(PageCount(kPages)),
        limiter_(&clock_, ByteCount(0)) {
    absl::StatusOr<std::unique_ptr<PrecopyRounds>> rounds =
        PrecopyRounds::Create(memory_.get(), &dirty_, &limiter_);
    EXPECT_TRUE(rounds.ok()) << rounds.status();
    rounds_ = *std::move(rounds);
  }

  // The guest writes.
  void Write(uint64_t page, uint64_t value) {
    guest_.Write(page, value);
    dirty_.Mark(PageIndex(page));
  }

  // Takes a batch into received_.
  absl::Status Receive(PageBatch& batch) {
    ++batches_;
    uint64_t end = 0;
    for (const PageBatch::Run& run : batch.runs()) {
      EXPECT_GE(run.pages.first.value(), end) << "not ascending";
      end = run.pages.end().value();
      for (uint64_t i = 0; i < run.pages.count.value(); ++i) {
        received_[run.pages.first.value() + i].push_back(
            PageInRun(run.data, i));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Send(const std::function<bool()>& interrupted = [] {
    return false;
  }) {
    const absl::Status status = rounds_->SendUnsent(
        [this](PageBatch& batch) { return Receive(batch); }, interrupted);
    ExpectCounted();
    return status;
  }

  void ExpectCounted() {
    EXPECT_EQ(rounds_->remaining(), rounds_->unsent().Count());
  }

  std::set<uint64_t> Received() const {
    std::set<uint64_t> pages;
    for (const auto& [page, versions] : received_) pages.insert(page);
    return pages;
  }

  TestGuest guest_;
  const std::unique_ptr<GuestMemory> memory_;
  SimulatedDirtySource dirty_;
  SimulatedClock clock_;
  RateLimiter limiter_;
  std::unique_ptr<PrecopyRounds> rounds_;
  // Every version of each page that was sent, in order.
  std::map<uint64_t, std::vector<std::string>> received_;
  int batches_ = 0;
};

TEST_F(PrecopyRoundsTest, AtFirstEveryPageIsSentOnce) {
  for (uint64_t page = 0; page < kPages; page += 3) {
    guest_.Write(page, 1 + page);
  }
  EXPECT_EQ(rounds_->remaining(), PageCount(kPages));
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send().ok());
  EXPECT_EQ(rounds_->remaining(), PageCount(0));
  ASSERT_EQ(received_.size(), kPages);
  for (const auto& [page, versions] : received_) {
    ASSERT_EQ(versions.size(), 1u) << page;
    EXPECT_TRUE(versions[0] == guest_.Page(page)) << page;
  }
  EXPECT_EQ(rounds_->sent_pages(), PageCount(kPages));
  EXPECT_EQ(rounds_->data_pages(), PageCount(334));
  EXPECT_EQ(rounds_->zero_pages(), PageCount(666));
  // Nothing more to send: no batch, not even an empty one.
  const int batches = batches_;
  ASSERT_TRUE(Send().ok());
  EXPECT_EQ(batches_, batches);
}

// A guest that is all holes costs one batch and no memory.
TEST_F(PrecopyRoundsTest, HolesAreNotTouched) {
  const int64_t before = guest_.AllocatedBlocks();
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send().ok());
  EXPECT_EQ(batches_, 1);
  EXPECT_EQ(rounds_->zero_pages(), PageCount(kPages));
  EXPECT_EQ(guest_.AllocatedBlocks(), before);
}

TEST_F(PrecopyRoundsTest, APageDirtiedAfterItWasSentComesAgain) {
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send().ok());
  Write(17, 1);
  Write(999, 2);
  received_.clear();
  ASSERT_TRUE(Send().ok());
  EXPECT_EQ(Received(), std::set<uint64_t>());
  ASSERT_TRUE(rounds_->Collect().ok());
  EXPECT_EQ(rounds_->remaining(), PageCount(2));
  ASSERT_TRUE(Send().ok());
  EXPECT_EQ(Received(), (std::set<uint64_t>{17, 999}));
  EXPECT_TRUE(received_[17][0] == PageOfValue(1));
  EXPECT_TRUE(received_[999][0] == PageOfValue(2));
}

// The moment between a batch's reading and its arrival.
TEST_F(PrecopyRoundsTest, APageDirtiedWhileItIsSentComesAgain) {
  ASSERT_TRUE(rounds_->Start().ok());
  for (uint64_t page = 0; page < kPages; ++page) guest_.Write(page, 1);
  ASSERT_TRUE(rounds_
                  ->SendUnsent(
                      [this](PageBatch& batch) {
                        Write(batch.runs()[0].pages.first.value(), 2);
                        return Receive(batch);
                      },
                      [] { return false; })
                  .ok());
  ASSERT_TRUE(rounds_->Collect().ok());
  EXPECT_EQ(rounds_->remaining(), PageCount(static_cast<uint64_t>(batches_)));
  ASSERT_TRUE(Send().ok());
  for (uint64_t page = 0; page < kPages; ++page) {
    EXPECT_TRUE(received_[page].back() == guest_.Page(page)) << page;
  }
}

TEST_F(PrecopyRoundsTest, TakeBackAndAcknowledge) {
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send().ok());
  rounds_->TakeBack();
  ExpectCounted();
  EXPECT_EQ(rounds_->remaining(), PageCount(kPages));
  ASSERT_TRUE(Send().ok());
  rounds_->Acknowledge();
  rounds_->TakeBack();
  ExpectCounted();
  EXPECT_EQ(rounds_->remaining(), PageCount(0));
  // Only what was sent since the acknowledgement.
  Write(5, 1);
  ASSERT_TRUE(rounds_->Collect().ok());
  ASSERT_TRUE(Send().ok());
  rounds_->TakeBack();
  EXPECT_EQ(rounds_->remaining(), PageCount(1));
  // Twice is not two pages.
  rounds_->TakeBack();
  ExpectCounted();
  EXPECT_EQ(rounds_->remaining(), PageCount(1));
}

// A page may be unsent and unacknowledged at once: it counts once.
TEST_F(PrecopyRoundsTest, TakeBackOfAPageThatIsDirtyAgain) {
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send().ok());
  Write(5, 1);
  ASSERT_TRUE(rounds_->Collect().ok());
  rounds_->TakeBack();
  ExpectCounted();
  EXPECT_EQ(rounds_->remaining(), PageCount(kPages));
}

TEST_F(PrecopyRoundsTest, InterruptedKeepsTheRestUnsent) {
  for (uint64_t page = 0; page < kPages; ++page) guest_.Write(page, 1);
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send([this] { return batches_ == 3; }).ok());
  EXPECT_EQ(batches_, 3);
  const uint64_t sent = 3 * kBatchPagesMax.value();
  EXPECT_EQ(Received(), Range(0, sent));
  EXPECT_EQ(rounds_->remaining(), PageCount(kPages - sent));
  EXPECT_EQ(rounds_->unsent().CountRun(PagesAt(0, sent)), PageCount(0));
  received_.clear();
  ASSERT_TRUE(Send([] { return true; }).ok());
  EXPECT_EQ(Received(), std::set<uint64_t>());
  ASSERT_TRUE(Send().ok());
  EXPECT_EQ(Received(), Range(sent, kPages));
}

TEST_F(PrecopyRoundsTest, AFailedSendIsTakenBack) {
  for (uint64_t page = 0; page < kPages; ++page) guest_.Write(page, 1);
  ASSERT_TRUE(rounds_->Start().ok());
  const absl::Status status = rounds_->SendUnsent(
      [this](PageBatch& batch) {
        if (batches_ == 2) return absl::UnavailableError("injected");
        return Receive(batch);
      },
      [] { return false; });
  EXPECT_EQ(status, absl::UnavailableError("injected"));
  ExpectCounted();
  EXPECT_EQ(rounds_->sent_pages(), PageCount(2 * kBatchPagesMax.value()));
  rounds_->TakeBack();
  ExpectCounted();
  EXPECT_EQ(rounds_->remaining(), PageCount(kPages));
}

TEST_F(PrecopyRoundsTest, AFailedReadIsTakenBack) {
  for (uint64_t page = 0; page < kPages; ++page) guest_.Write(page, 1 + page);
  ASSERT_TRUE(rounds_->Start().ok());
  guest_.Truncate(ByteCount(700 * kPageSize + 1));
  EXPECT_EQ(Send().code(), StatusCode::kDataLoss);
  rounds_->TakeBack();
  ExpectCounted();
  EXPECT_EQ(rounds_->remaining(), PageCount(kPages));
  guest_.Truncate(ByteCount(kPages * kPageSize));
  received_.clear();
  ASSERT_TRUE(Send().ok());
  EXPECT_EQ(Received(), Range(0, kPages));
}

TEST_F(PrecopyRoundsTest, AFailedCollectLosesNothing) {
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send().ok());
  for (uint64_t page = 100; page < 110; ++page) Write(page, 1);
  dirty_.FailNextCollect(absl::UnavailableError("injected"), PageCount(4));
  EXPECT_EQ(rounds_->Collect(), absl::UnavailableError("injected"));
  ExpectCounted();
  EXPECT_EQ(rounds_->remaining(), PageCount(4));
  ASSERT_TRUE(rounds_->Collect().ok());
  ExpectCounted();
  EXPECT_EQ(rounds_->remaining(), PageCount(10));
}

TEST_F(PrecopyRoundsTest, WhatIsRecentIsShownAloneAndUnsent) {
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send().ok());
  rounds_->Acknowledge();
  Write(7, 1);
  ASSERT_TRUE(rounds_->Collect().ok());
  Write(9, 1);
  Write(7, 2);
  ASSERT_TRUE(rounds_->CollectRecent().ok());
  EXPECT_EQ(rounds_->recent().Count(), PageCount(2));
  rounds_->Acknowledge();
  Write(800, 1);
  ASSERT_TRUE(rounds_->CollectRecent().ok());
  EXPECT_EQ(rounds_->recent().Count(), PageCount(1));
  EXPECT_TRUE(rounds_->recent().Test(PageIndex(800)));
  EXPECT_EQ(rounds_->remaining(), PageCount(3));
  ExpectCounted();
  rounds_->TakeBack();
  EXPECT_EQ(rounds_->remaining(), PageCount(3));
  ExpectCounted();
}

TEST_F(PrecopyRoundsTest, AFailedCollectOfTheRecentLosesNothing) {
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send().ok());
  rounds_->Acknowledge();
  for (uint64_t page = 0; page < 10; ++page) Write(page, 1);
  dirty_.FailNextCollect(absl::UnavailableError("injected"), PageCount(4));
  EXPECT_FALSE(rounds_->CollectRecent().ok());
  EXPECT_EQ(rounds_->remaining(), PageCount(4));
  ExpectCounted();
  rounds_->TakeBack();
  EXPECT_EQ(rounds_->remaining(), PageCount(4));
  EXPECT_TRUE(rounds_->CollectRecent().ok());
  EXPECT_EQ(rounds_->remaining(), PageCount(10));
  ExpectCounted();
}

TEST_F(PrecopyRoundsTest, BeforeStartThereIsNothingToCollect) {
  EXPECT_TRUE(rounds_->Collect().ok());
  EXPECT_TRUE(rounds_->CollectRecent().ok());
  EXPECT_EQ(dirty_.collects(), 0u);
  EXPECT_EQ(rounds_->remaining(), PageCount(kPages));
}

TEST_F(PrecopyRoundsTest, AFailedStartMayBeTriedAgain) {
  dirty_.FailNextStart(absl::UnavailableError("injected"));
  EXPECT_EQ(rounds_->Start(), absl::UnavailableError("injected"));
  EXPECT_TRUE(rounds_->Abort().ok());
  EXPECT_TRUE(rounds_->Start().ok());
}

TEST_F(PrecopyRoundsTest, DataIsPacedAndZerosAreNot) {
  limiter_.SetLimit(ByteCount(kPageSize * 100));
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send().ok());
  EXPECT_EQ(clock_.NowNanos(), 0);
  for (uint64_t page = 0; page < 200; ++page) Write(page, 1);
  ASSERT_TRUE(rounds_->Collect().ok());
  ASSERT_TRUE(Send().ok());
  EXPECT_EQ(clock_.NowNanos(), 2 * kNanosPerSecond);
}

// Exactly what the destination may lack: what was acknowledged and has not been
// written since is not handed back, the rest is. The dirty source is kept
// running by a failure to stop it, so that it can be asked.
TEST_F(PrecopyRoundsTest, AbortHandsEverythingBackThatIsNotAcknowledged) {
  for (uint64_t page = 0; page < kPages; ++page) guest_.Write(page, 1);
  ASSERT_TRUE(rounds_->Start().ok());
  ASSERT_TRUE(Send([this] { return batches_ == 2; }).ok());
  rounds_->Acknowledge();
  ASSERT_TRUE(Send([this] { return batches_ == 3; }).ok());
  // Acknowledged and dirty again, once collected and once not.
  Write(1, 2);
  ASSERT_TRUE(rounds_->Collect().ok());
  Write(3, 2);
  dirty_.FailNextStop(absl::InternalError("injected"));
  EXPECT_EQ(rounds_->Abort(), absl::InternalError("injected"));
  std::set<uint64_t> expected = Range(2 * kBatchPagesMax.value(), kPages);
  expected.insert({1, 3});
  EXPECT_EQ(CollectAll(dirty_, kPages), expected);
}

TEST_F(PrecopyRoundsTest, AbortStopsTracking) {
  ASSERT_TRUE(rounds_->Start().ok());
  EXPECT_TRUE(rounds_->Abort().ok());
  EXPECT_FALSE(dirty_.started());
  // Not started: nothing to give back, nothing to stop.
  EXPECT_TRUE(rounds_->Abort().ok());
}

TEST_F(PrecopyRoundsTest, AbortStopsTrackingEvenIfNothingCanBeHandedBack) {
  ASSERT_TRUE(rounds_->Start().ok());
  dirty_.FailNextRestore(absl::InternalError("injected"));
  EXPECT_EQ(rounds_->Abort(), absl::InternalError("injected"));
  EXPECT_FALSE(dirty_.started());
}

// --- The model: random steps against what the destination would have.

// A source with its guest, and the model of a destination behind a lane that
// may lose anything not yet acknowledged.
class Model {
 public:
  static constexpr uint64_t kPages = 517;

  Model(uint32_t seed, SimulatedDirtySource::Tracking tracking)
      : random_(seed),
        guest_({200, 317}),
        memory_(guest_.OpenMemory()),
        dirty_(PageCount(kPages), tracking),
        limiter_(&clock_, ByteCount(0)),
        current_(kPages, 0) {
    absl::StatusOr<std::unique_ptr<PrecopyRounds>> rounds =
        PrecopyRounds::Create(memory_.get(), &dirty_, &limiter_);
    EXPECT_TRUE(rounds.ok());
    rounds_ = *std::move(rounds);
    // Before tracking begins: found because at first everything is unsent.
    for (int i = 0; i < 20; ++i) WriteRun();
    EXPECT_TRUE(rounds_->Start().ok());
  }

  const std::string& steps() const { return steps_; }

  void Step() {
    switch (Below(9)) {
      case 0:
      case 1:
        return WriteRun();
      case 2:
        return Collect();
      case 3:
        return FailedCollect();
      case 4:
        return Send(/*fail_at=*/std::nullopt, /*stop_at=*/Below(8));
      case 5:
        return Send(/*fail_at=*/Below(8), /*stop_at=*/std::nullopt);
      case 6:
        return Acknowledge();
      case 7:
        return CollectRecent();
      default:
        return TakeBack();
    }
  }

  // The migration is finished with the guest stopped.
  void Finish() {
    guest_runs_ = false;
    Collect();
    while (!rounds_->remaining().empty()) Send(std::nullopt, std::nullopt);
    Acknowledge();
  }

  // None is forgotten: a page that the destination lacks is known to be so.
  bool InvariantHolds() {
    if (rounds_->remaining() != rounds_->unsent().Count()) return false;
    for (uint64_t page = 0; page < kPages; ++page) {
      const auto stored = stored_.find(page);
      const bool lacking =
          stored == stored_.end() || stored->second != current_[page];
      if (lacking && !rounds_->unsent().Test(PageIndex(page)) &&
          !in_flight_.contains(page) && !dirty_.IsPending(PageIndex(page))) {
        absl::StrAppend(&steps_, "forgotten: page ", page, "\n");
        return false;
      }
    }
    return true;
  }

  bool Complete() const {
    for (uint64_t page = 0; page < kPages; ++page) {
      const auto stored = stored_.find(page);
      if (stored == stored_.end() || stored->second != current_[page] ||
          guest_.Page(page) != PageOfValue(current_[page])) {
        return false;
      }
    }
    return true;
  }

 private:
  uint64_t Below(uint64_t n) { return random_() % n; }

  void WriteRun() {
    const uint64_t first = Below(kPages);
    const uint64_t count =
        1 + Below(std::min<uint64_t>(kPages - first, Below(4) == 0 ? 90 : 3));
    // Now and then zeros.
    const uint64_t value = Below(4) == 0 ? 0 : ++version_;
    absl::StrAppend(&steps_, "Write(", first, ", ", count, ", ", value, ")\n");
    for (uint64_t page = first; page < first + count; ++page) {
      guest_.Write(page, value);
      current_[page] = value;
    }
    dirty_.MarkRun(PagesAt(first, count));
  }

  void Collect() {
    absl::StrAppend(&steps_, "Collect()\n");
    EXPECT_TRUE(rounds_->Collect().ok());
  }

  void CollectRecent() {
    Acknowledge();  // nothing may be under way
    absl::StrAppend(&steps_, "CollectRecent()\n");
    EXPECT_TRUE(rounds_->CollectRecent().ok());
  }

  void FailedCollect() {
    const uint64_t moved = Below(20);
    absl::StrAppend(&steps_, "FailedCollect(", moved, ")\n");
    dirty_.FailNextCollect(absl::UnavailableError("injected"),
                           PageCount(moved));
    EXPECT_FALSE(rounds_->Collect().ok());
  }

  void Send(std::optional<uint64_t> fail_at, std::optional<uint64_t> stop_at) {
    absl::StrAppend(&steps_, "Send(fail_at=", fail_at.value_or(99),
                    ", stop_at=", stop_at.value_or(99), ")\n");
    uint64_t batches = 0;
    const absl::Status status = rounds_->SendUnsent(
        [&](PageBatch& batch) {
          // The guest runs meanwhile.
          if (guest_runs_ && Below(2) == 0) WriteRun();
          if (batches++ == fail_at) return absl::UnavailableError("injected");
          Deliver(batch);
          return absl::OkStatus();
        },
        [&] { return batches == stop_at; });
    EXPECT_EQ(status.ok(), !(fail_at.has_value() && batches > *fail_at));
    if (!status.ok()) TakeBack();
  }

  void Deliver(const PageBatch& batch) {
    for (const PageBatch::Run& run : batch.runs()) {
      for (uint64_t i = 0; i < run.pages.count.value(); ++i) {
        uint64_t value = 0;
        if (!run.data.empty()) {
          std::memcpy(&value, run.data.data() + i * kPageSize, sizeof(value));
        }
        in_flight_[run.pages.first.value() + i] = value;
      }
    }
  }

  void Acknowledge() {
    absl::StrAppend(&steps_, "Acknowledge()\n");
    for (const auto& [page, value] : in_flight_) stored_[page] = value;
    in_flight_.clear();
    rounds_->Acknowledge();
  }

  // The lane broke: some of what was on its way has arrived.
  void TakeBack() {
    absl::StrAppend(&steps_, "TakeBack()\n");
    for (const auto& [page, value] : in_flight_) {
      if (Below(2) == 0) stored_[page] = value;
    }
    in_flight_.clear();
    rounds_->TakeBack();
  }

  std::mt19937 random_;
  TestGuest guest_;
  const std::unique_ptr<GuestMemory> memory_;
  SimulatedDirtySource dirty_;
  SimulatedClock clock_;
  RateLimiter limiter_;
  std::unique_ptr<PrecopyRounds> rounds_;
  bool guest_runs_ = true;
  // What the guest last wrote to each page.
  std::vector<uint64_t> current_;
  uint64_t version_ = 0;
  // Sent and neither acknowledged nor taken back.
  std::map<uint64_t, uint64_t> in_flight_;
  // What the destination has for sure.
  std::map<uint64_t, uint64_t> stored_;
  std::string steps_;
};

using PrecopyRoundsModelTest =
    testing::TestWithParam<SimulatedDirtySource::Tracking>;

TEST_P(PrecopyRoundsModelTest, NoPageIsForgotten) {
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    Model model(seed, GetParam());
    for (int step = 0; step < 60; ++step) {
      model.Step();
      ASSERT_TRUE(model.InvariantHolds()) << "seed " << seed << ":\n"
                                          << model.steps();
    }
    model.Finish();
    ASSERT_TRUE(model.InvariantHolds() && model.Complete())
        << "seed " << seed << ":\n"
        << model.steps();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Tracking, PrecopyRoundsModelTest,
    testing::Values(SimulatedDirtySource::Tracking::kOneStep,
                    SimulatedDirtySource::Tracking::kTwoSteps));

// --- Sources that want pages to be cleared before they are read.

constexpr uint64_t kThreeChunks = 2 * kClearPages.value() + 500;

class ClearingTest : public testing::Test {
 protected:
  ClearingTest()
      : guest_({kThreeChunks}),
        memory_(guest_.OpenMemory()),
        dirty_(PageCount(kThreeChunks),
               SimulatedDirtySource::Tracking::kTwoSteps),
        limiter_(&clock_, ByteCount(0)),
        rounds_(*PrecopyRounds::Create(memory_.get(), &dirty_, &limiter_)) {
    EXPECT_TRUE(rounds_->Start().ok());
  }

  absl::Status Send(const PrecopyRounds::Send& send) {
    return rounds_->SendUnsent(send, [] { return false; });
  }

  TestGuest guest_;
  const std::unique_ptr<GuestMemory> memory_;
  SimulatedDirtySource dirty_;
  SimulatedClock clock_;
  RateLimiter limiter_;
  const std::unique_ptr<PrecopyRounds> rounds_;
};

// A chunk is cleared when the first of its pages is about to be read, and what
// the guest writes from then on is dirty again, sent or not.
TEST_F(ClearingTest, ChunksAreClearedJustBeforeTheyAreRead) {
  for (uint64_t page = 0; page < kThreeChunks; ++page) guest_.Write(page, 1);
  EXPECT_EQ(dirty_.Pending(), PageCount(kThreeChunks));
  std::vector<uint64_t> pending;
  ASSERT_TRUE(Send([&](PageBatch&) {
                if (pending.empty() ||
                    dirty_.Pending().value() != pending.back()) {
                  pending.push_back(dirty_.Pending().value());
                }
                return absl::OkStatus();
              }).ok());
  EXPECT_EQ(pending, (std::vector<uint64_t>{kThreeChunks - 4096,
                                            kThreeChunks - 2 * 4096, 0}));
  ASSERT_TRUE(rounds_->Collect().ok());
  EXPECT_EQ(rounds_->remaining(), PageCount(0));
}

TEST_F(ClearingTest, OnlyUnsentPagesAreCleared) {
  ASSERT_TRUE(Send([](PageBatch&) { return absl::OkStatus(); }).ok());
  dirty_.Mark(PageIndex(7));
  ASSERT_TRUE(rounds_->Collect().ok());
  dirty_.Mark(PageIndex(8));  // in the same chunk, and not known of
  ASSERT_TRUE(Send([](PageBatch&) { return absl::OkStatus(); }).ok());
  EXPECT_FALSE(dirty_.IsPending(PageIndex(7)));
  EXPECT_TRUE(dirty_.IsPending(PageIndex(8)));
}

TEST_F(ClearingTest, WhatCannotBeClearedIsNotRead) {
  dirty_.FailNextClear(absl::UnavailableError("injected"));
  int batches = 0;
  const PrecopyRounds::Send send = [&](PageBatch&) {
    ++batches;
    return absl::OkStatus();
  };
  EXPECT_EQ(Send(send), absl::UnavailableError("injected"));
  EXPECT_EQ(batches, 0);
  EXPECT_EQ(rounds_->remaining(), PageCount(kThreeChunks));
  ASSERT_TRUE(Send(send).ok());
  EXPECT_EQ(rounds_->remaining(), PageCount(0));
}

}  // namespace
}  // namespace postcopy
