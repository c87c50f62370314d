// Streams whose peer does not say what it wants.
#ifndef PAGESERVER_STREAM_DEADLINES_H_
#define PAGESERVER_STREAM_DEADLINES_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

namespace postcopy {

// Ends streams that are silent for too long after they began. One thread for
// all of them; thread-safe.
class StreamDeadlines {
 public:
  explicit StreamDeadlines(std::chrono::nanoseconds patience);
  // REQUIRES: no Pending is there any more.
  ~StreamDeadlines();
  StreamDeadlines(const StreamDeadlines&) = delete;
  StreamDeadlines& operator=(const StreamDeadlines&) = delete;

  // One stream, as long as it is silent.
  class Pending {
   public:
    // Calls `end` once, from another thread, if this lives for longer than the
    // patience. `end` must not block. When this is destroyed, it has returned
    // or is not called any more.
    Pending(StreamDeadlines* deadlines, std::function<void()> end);
    ~Pending();
    Pending(const Pending&) = delete;
    Pending& operator=(const Pending&) = delete;

   private:
    StreamDeadlines* const deadlines_;
    uint64_t id_ = 0;
  };

 private:
  using Moment = std::chrono::steady_clock::time_point;
  struct Entry {
    Moment deadline;
    std::function<void()> end;
  };

  void Run();

  const std::chrono::nanoseconds patience_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  uint64_t next_id_ = 0;
  // By id, which is the order of their deadlines.
  std::map<uint64_t, Entry> silent_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace postcopy

#endif  // PAGESERVER_STREAM_DEADLINES_H_
