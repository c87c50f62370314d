// Threads for reads that may take long.
#ifndef PAGESERVER_SLOW_READERS_H_
#define PAGESERVER_SLOW_READERS_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace postcopy {

// What a disk has under way at a time for pages that a guest waits for.
inline constexpr size_t kSlowReadsPerDisk = 16;
// Threads of one daemon, started when they are first needed: more than a disk
// that hangs can keep.
inline constexpr size_t kSlowReadThreads = 2 * kSlowReadsPerDisk;

// Runs reads, several at a time: those of one disk in the order in which they
// come, the disks in turn. Thread-safe.
class SlowReaders {
 public:
  // Must wait for nothing but the disk: it would keep others from theirs.
  using Read = std::function<void()>;

  explicit SlowReaders(size_t threads_max = kSlowReadThreads,
                       size_t per_disk_max = kSlowReadsPerDisk)
      : threads_max_(threads_max), per_disk_max_(per_disk_max) {}
  SlowReaders(const SlowReaders&) = delete;
  SlowReaders& operator=(const SlowReaders&) = delete;
  // Waits for reads that run; drops the others.
  ~SlowReaders();

  // Has `read` run later, by another thread. `disk` is the same for all that
  // may wait for the same. False, and it will not be, if there is no thread for
  // it.
  bool Submit(uint64_t disk, Read read);

 private:
  // One that has reads waiting or running.
  struct Disk {
    std::deque<Read> waiting;
    size_t running = 0;
  };

  void Run();
  // REQUIRE mutex_.
  //
  // The disk whose turn it is among those that have something to run now.
  std::map<uint64_t, Disk>::iterator NextLocked();
  size_t RunnableLocked() const;

  const size_t threads_max_;
  const size_t per_disk_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::map<uint64_t, Disk> disks_;
  uint64_t last_disk_ = 0;  // had its turn
  size_t idle_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace postcopy

#endif  // PAGESERVER_SLOW_READERS_H_
