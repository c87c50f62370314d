#include "pageserver/stream_deadlines.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

TEST(StreamDeadlinesTest, EndsWhoIsSilentAndOnlyOnce) {
  StreamDeadlines deadlines(milliseconds(1));
  std::mutex mutex;
  std::condition_variable changed;
  int ended = 0;
  const auto end = [&] {
    std::lock_guard lock(mutex);
    ++ended;
    changed.notify_all();
  };
  const StreamDeadlines::Pending first(&deadlines, end);
  const StreamDeadlines::Pending second(&deadlines, end);
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return ended == 2; });
  }
  // A third proves that the thread has gone round once more.
  const StreamDeadlines::Pending third(&deadlines, end);
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return ended >= 3; });
  EXPECT_EQ(ended, 3);
}

TEST(StreamDeadlinesTest, WhoSpeaksInTimeIsLeftAlone) {
  std::atomic<int> ended{0};
  {
    StreamDeadlines deadlines(hours(1));
    const StreamDeadlines::Pending pending(&deadlines, [&] { ++ended; });
  }
  EXPECT_EQ(ended, 0);
}

// Proves that nothing is called once a stream's Pending has gone: what `end`
// touches goes with it.
TEST(StreamDeadlinesTest, NothingIsCalledBehindTheEnd) {
  StreamDeadlines deadlines(std::chrono::microseconds(50));
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&deadlines] {
      for (int j = 0; j < 500; ++j) {
        auto alive = std::make_unique<std::atomic<int>>(0);
        const StreamDeadlines::Pending pending(
            &deadlines, [raw = alive.get()] { raw->fetch_add(1); });
        if (j % 3 == 0) std::this_thread::yield();
        EXPECT_LE(alive->load(), 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace postcopy
