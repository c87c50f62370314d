// Threads for reads that may take long.
#ifndef PAGESERVER_SLOW_READERS_H_
#define PAGESERVER_SLOW_READERS_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace postcopy {

// Threads of one daemon, started when they are first needed: what a disk has
// under way at a time for pages that a guest waits for.
inline constexpr size_t kSlowReadThreads = 16;

// Runs reads in the order in which they come, several at a time. Thread-safe.
class SlowReaders {
 public:
  // Must wait for nothing but the disk: it would keep others from theirs.
  using Read = std::function<void()>;

  explicit SlowReaders(size_t threads_max = kSlowReadThreads)
      : threads_max_(threads_max) {}
  SlowReaders(const SlowReaders&) = delete;
  SlowReaders& operator=(const SlowReaders&) = delete;
  // Waits for reads that run; drops the others.
  ~SlowReaders();

  // Has `read` run later, by another thread. False, and it will not be, if
  // there is no thread for it.
  bool Submit(Read read);

 private:
  void Run();

  const size_t threads_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<Read> waiting_;
  size_t idle_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace postcopy

#endif  // PAGESERVER_SLOW_READERS_H_
