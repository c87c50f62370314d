// What may wait does not hold up what is behind it: against reads that the test
// holds back, without a stream, a disk or a time.
#include "pageserver/urgent_answers.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "gtest/gtest.h"
#include "pageserver/page_batch.h"
#include "pageserver/slow_readers.h"

namespace postcopy {
namespace {

// Pages are sent as runs of zeros, since only which and when is asked here.
class UrgentAnswersTest : public testing::Test {
 protected:
  ~UrgentAnswersTest() override {
    ReleaseAll();
    if (answers_ != nullptr) answers_->Close().IgnoreError();
  }

  void Begin(bool any_order = true) {
    UrgentAnswers::Stream stream = {
        .may_wait = nullptr,
        .read = [this](absl::Span<const PageIndex> pages,
                       PageBatch& batch) { return Read(pages, batch); },
        .send = [this](PageBatch& batch) { return Send(batch); },
        .abort = [this] { Abort(); }};
    if (any_order) {
      stream.may_wait = [this](PageRun run) { return MayWait(run); };
    }
    answers_ = UrgentAnswers::Create(std::move(stream), &readers_);
  }

  // Reads of these wait until they are released.
  void Hold(std::set<uint64_t> pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = std::move(pages);
  }
  void ReleaseAll() { Hold({}), changed_.notify_all(); }
  absl::Status Ask(const std::vector<uint64_t>& pages) {
    std::vector<PageIndex> asked;
    for (const uint64_t page : pages) asked.push_back(PageIndex(page));
    return answers_->Answer(asked);
  }
  // The pages of each answer so far; waits until there are so many answers.
  std::vector<std::vector<uint64_t>> AwaitSent(size_t answers) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return sent_.size() >= answers; });
    return sent_;
  }
  void AwaitReading(size_t reads) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return reading_held_ >= reads; });
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::set<uint64_t> held_;
  std::set<uint64_t> broken_;
  size_t reading_held_ = 0;
  std::vector<std::vector<uint64_t>> sent_;
  bool ended_ = false;
  bool stuck_ = false;
  size_t sends_stuck_ = 0;
  size_t running_ = 0;
  std::atomic<int> aborts_{0};
  std::atomic<int> sends_at_once_{0};
  SlowReaders readers_;
  std::shared_ptr<UrgentAnswers> answers_;

 private:
  bool Held(absl::Span<const PageIndex> pages) const {
    for (const PageIndex page : pages) {
      if (held_.count(page.value()) > 0) return true;
    }
    return false;
  }
  bool MayWait(PageRun run) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto first = held_.lower_bound(run.first.value());
    return first != held_.end() && *first < run.end().value();
  }
  absl::Status Read(absl::Span<const PageIndex> pages, PageBatch& batch) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (Held(pages)) {
      ++reading_held_;
      changed_.notify_all();
      changed_.wait(lock, [&] { return !Held(pages); });
    }
    batch.Clear();
    for (const PageIndex page : pages) {
      if (broken_.count(page.value()) > 0) {
        return absl::DataLossError("it is broken");
      }
      batch.AddZero({page, PageCount(1)});
    }
    return absl::OkStatus();
  }
  void Abort() {
    ++aborts_;
    const std::lock_guard<std::mutex> lock(mutex_);
    stuck_ = false;
    changed_.notify_all();
  }
  bool Send(PageBatch& batch) {
    EXPECT_EQ(sends_at_once_.fetch_add(1), 0);
    std::vector<uint64_t> pages;
    for (const PageBatch::Run& run : batch.runs()) {
      for (PageIndex page = run.pages.first; page < run.pages.end();
           page += PageCount(1)) {
        pages.push_back(page.value());
      }
    }
    sends_at_once_.fetch_sub(1);
    std::unique_lock<std::mutex> lock(mutex_);
    if (stuck_) {
      ++sends_stuck_;
      changed_.notify_all();
      changed_.wait(lock, [this] { return !stuck_; });
      return false;
    }
    sent_.push_back(std::move(pages));
    changed_.notify_all();
    return !ended_;
  }
};

using Sent = std::vector<std::vector<uint64_t>>;

TEST_F(UrgentAnswersTest, ThePagesBehindASlowOneComeFirst) {
  Begin();
  Hold({2});
  EXPECT_TRUE(Ask({1, 2, 3, 9}).ok());
  EXPECT_EQ(AwaitSent(1), (Sent{{1, 3, 9}}));
  EXPECT_TRUE(Ask({4}).ok());
  EXPECT_TRUE(Ask({2}).ok());  // asked for again: read again
  EXPECT_EQ(AwaitSent(2), (Sent{{1, 3, 9}, {4}}));
  AwaitReading(2);
  ReleaseAll();
  EXPECT_EQ(AwaitSent(4), (Sent{{1, 3, 9}, {4}, {2}, {2}}));
}

// One read of the disk rather than many.
TEST_F(UrgentAnswersTest, SlowPagesThatLieTogetherAreOneRead) {
  Begin();
  Hold({10, 11, 12, 20});
  EXPECT_TRUE(Ask({10, 11, 12, 13, 20}).ok());
  EXPECT_EQ(AwaitSent(1), (Sent{{13}}));
  AwaitReading(2);
  ReleaseAll();
  const Sent sent = AwaitSent(3);
  EXPECT_EQ(sent.size(), 3u);
  EXPECT_EQ(std::set<std::vector<uint64_t>>(sent.begin() + 1, sent.end()),
            (std::set<std::vector<uint64_t>>{{10, 11, 12}, {20}}));
}

TEST_F(UrgentAnswersTest, ARequestOfSlowPagesAloneIsAnsweredLater) {
  Begin();
  Hold({5});
  EXPECT_TRUE(Ask({5}).ok());
  AwaitReading(1);
  EXPECT_TRUE(AwaitSent(0).empty());
  ReleaseAll();
  EXPECT_EQ(AwaitSent(1), (Sent{{5}}));
}

TEST_F(UrgentAnswersTest, ADestinationThatWantsOrderGetsIt) {
  Begin(/*any_order=*/false);
  Hold({2});
  std::thread stream([this] {
    EXPECT_TRUE(Ask({1, 2, 3}).ok());
    EXPECT_TRUE(Ask({4}).ok());
  });
  AwaitReading(1);
  EXPECT_TRUE(AwaitSent(0).empty());
  ReleaseAll();
  stream.join();
  EXPECT_EQ(AwaitSent(2), (Sent{{1, 2, 3}, {4}}));
}

// Whoever asks for more than is taken waits himself.
TEST_F(UrgentAnswersTest, ALimitOfSlowPages) {
  Begin();
  std::set<uint64_t> slow;
  for (uint64_t i = 0; i <= kSlowPagesPerStream.value(); ++i)
    slow.insert(2 * i);
  Hold(slow);
  for (uint64_t i = 0; i < kSlowPagesPerStream.value(); ++i) {
    EXPECT_TRUE(Ask({2 * i}).ok());
  }
  AwaitReading(kSlowReadsPerStream);
  std::thread stream(
      [this] { EXPECT_TRUE(Ask({kSlowPagesPerStream.value() * 2}).ok()); });
  // One more than the readers have reads it.
  AwaitReading(kSlowReadsPerStream + 1);
  EXPECT_TRUE(AwaitSent(0).empty());
  ReleaseAll();
  stream.join();
  EXPECT_EQ(AwaitSent(kSlowPagesPerStream.value() + 1).size(),
            kSlowPagesPerStream.value() + 1);
}

// A disk that hangs keeps as many threads as it may, and no VM all of these.
TEST_F(UrgentAnswersTest, AStreamHasSoManyReadsAtATimeAndNotOneMore) {
  Begin();
  std::set<uint64_t> slow;
  for (uint64_t i = 0; i <= kSlowReadsPerStream; ++i) slow.insert(2 * i);
  Hold(slow);
  for (const uint64_t page : slow) EXPECT_TRUE(Ask({page}).ok());
  AwaitReading(kSlowReadsPerStream);
  // Behind whatever the stream has given them, a read of the same disk.
  std::atomic<bool> read{false};
  ASSERT_TRUE(readers_.Submit(0, [&] { read = true; }));
  while (!read) std::this_thread::yield();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_EQ(reading_held_, kSlowReadsPerStream);
  }
  ReleaseAll();
  EXPECT_EQ(AwaitSent(slow.size()).size(), slow.size());
}

// A peer that takes nothing holds up its own stream and no reader.
TEST_F(UrgentAnswersTest, APeerThatTakesNothingHoldsUpNobodyElse) {
  Begin();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stuck_ = true;
  }
  std::set<uint64_t> slow;
  for (uint64_t i = 0; i < 2 * kSlowReadsPerDisk; ++i) slow.insert(2 * i);
  Hold(slow);
  for (const uint64_t page : slow) EXPECT_TRUE(Ask({page}).ok());
  AwaitReading(kSlowReadsPerStream);
  ReleaseAll();
  // All that the disk may have come free.
  for (size_t i = 0; i < kSlowReadsPerDisk; ++i) {
    ASSERT_TRUE(readers_.Submit(0, [this] {
      std::unique_lock<std::mutex> lock(mutex_);
      ++running_;
      changed_.notify_all();
      changed_.wait(lock, [this] { return running_ == kSlowReadsPerDisk; });
    }));
  }
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] {
      return running_ == kSlowReadsPerDisk && sends_stuck_ == 1;
    });
  }
  EXPECT_TRUE(answers_->Close().ok());
  EXPECT_EQ(aborts_, 1);
  EXPECT_TRUE(AwaitSent(0).empty());
  answers_ = nullptr;
}

TEST_F(UrgentAnswersTest, AStreamThatEndsDoesNotWaitForAReadAndGetsNothing) {
  Begin();
  Hold({2});
  EXPECT_TRUE(Ask({2}).ok());
  AwaitReading(1);
  EXPECT_TRUE(answers_->Close().ok());
  answers_ = nullptr;
  Begin();
  ReleaseAll();
  Hold({});
  EXPECT_TRUE(Ask({7}).ok());
  Hold({8});
  EXPECT_TRUE(Ask({8}).ok());
  AwaitReading(2);
  ReleaseAll();
  EXPECT_EQ(AwaitSent(2), (Sent{{7}, {8}}));
  EXPECT_EQ(aborts_, 0);
}

TEST_F(UrgentAnswersTest, ALateReadThatFailsEndsTheStream) {
  Begin();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    broken_ = {2};
  }
  Hold({2});
  EXPECT_TRUE(Ask({2}).ok());
  AwaitReading(1);
  ReleaseAll();
  while (aborts_ == 0) std::this_thread::yield();
  EXPECT_TRUE(absl::IsDataLoss(Ask({3})));
  EXPECT_TRUE(AwaitSent(0).empty());
  // Also to a stream that asks for nothing more.
  EXPECT_EQ(answers_->Close(), absl::DataLossError("it is broken"));
  answers_ = nullptr;
}

TEST_F(UrgentAnswersTest, AnEarlyReadThatFailsAndAnEndAreTold) {
  Begin();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    broken_ = {2};
  }
  EXPECT_TRUE(absl::IsDataLoss(Ask({2})));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
  }
  EXPECT_TRUE(absl::IsUnavailable(Ask({3})));
}

TEST(SlowReadersTest, AsManyThreadsAsThereAreReadsAndNotOneMore) {
  std::mutex mutex;
  std::condition_variable changed;
  int running = 0;
  int most = 0;
  bool release = false;
  int done = 0;
  SlowReaders readers(3);
  const auto read = [&] {
    std::unique_lock<std::mutex> lock(mutex);
    most = std::max(most, ++running);
    changed.notify_all();
    changed.wait(lock, [&] { return release; });
    --running;
    ++done;
    changed.notify_all();
  };
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(readers.Submit(i, read));
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [&] { return running == 3; });
  release = true;
  changed.notify_all();
  changed.wait(lock, [&] { return done == 5; });
  EXPECT_EQ(most, 3);
}

// However many wait for a disk that hangs, another one's pages come.
TEST(SlowReadersTest, ADiskThatHangsKeepsNoMoreThanItsShare) {
  std::mutex mutex;
  std::condition_variable changed;
  size_t hanging = 0;
  size_t read = 0;
  bool release = false;
  SlowReaders readers(kSlowReadThreads);
  const auto hang = [&] {
    std::unique_lock<std::mutex> lock(mutex);
    ++hanging;
    changed.notify_all();
    changed.wait(lock, [&] { return release; });
  };
  for (size_t i = 0; i < 4 * kSlowReadThreads; ++i) {
    EXPECT_TRUE(readers.Submit(7, hang));
  }
  const auto count = [&] {
    const std::lock_guard<std::mutex> lock(mutex);
    ++read;
    changed.notify_all();
  };
  for (const uint64_t disk : {6, 8}) {
    for (size_t i = 0; i < 4 * kSlowReadThreads; ++i) {
      EXPECT_TRUE(readers.Submit(disk, count));
    }
  }
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [&] { return read == 8 * kSlowReadThreads; });
  changed.wait(lock, [&] { return hanging == kSlowReadsPerDisk; });
  release = true;
  changed.notify_all();
  changed.wait(lock, [&] { return hanging == 4 * kSlowReadThreads; });
}

TEST(SlowReadersTest, WithoutThreadsNothingIsTaken) {
  SlowReaders readers(0);
  EXPECT_FALSE(readers.Submit(0, [] { FAIL(); }));
}

}  // namespace
}  // namespace postcopy
