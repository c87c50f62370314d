// Which threads of a VMM wait for pages, and how long each has waited.
#ifndef UFFD_WAITING_THREADS_H_
#define UFFD_WAITING_THREADS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace postcopy {

// Threads that are told apart, for good: the first that fault. What others do
// is counted together. A guest has a thread per vCPU.
inline constexpr size_t kMaxFaultingThreads = 128;

// What one thread, or several together, waited. A value.
struct FaultingThread {
  // As the VMM's own PID namespace numbers it; 0: several threads.
  uint32_t id = 0;
  // Messages about pages that were not here and had to be fetched. A thread
  // that was woken in between has several for one wait.
  uint64_t faults = 0;
  // The waits' sum, with one that is going on, and the longest of them.
  uint64_t wait_ns = 0;
  uint64_t wait_max_ns = 0;

  friend bool operator==(const FaultingThread&,
                         const FaultingThread&) = default;
};

struct FaultingThreads {
  // At most kMaxFaultingThreads, in the order of their first fault.
  std::vector<FaultingThread> threads;
  // All beyond them; how many they are is not known.
  FaultingThread others;

  friend bool operator==(const FaultingThreads&,
                         const FaultingThreads&) = default;
};

// A fixed table, 8 KiB, no allocation. A thread waits for one page at a time:
// if it faults elsewhere it has been woken, and its wait for the former page
// ends then; if it faults there again the wait goes on. Others are not told
// apart, so for them each message is a wait of its own. Not thread-safe.
class WaitingThreads {
 public:
  // Who waits for one page. Kept by whoever keeps the page, at one address
  // while somebody waits. 24 bytes.
  struct Waiters {
    uint16_t first = 0;  // index of a thread, counted from 1; 0: none
    uint32_t others = 0;
    // Since when the first of these waits, and how much later the others of
    // them began, summed up.
    int64_t others_since_ns = 0;
    uint64_t others_later_ns = 0;
  };

  // Counts a fault of `thread`, which does not wait. 0 is no thread: nothing.
  void Count(uint32_t thread);
  // As Count, and `thread` waits since `now_ns`.
  void Begin(uint32_t thread, int64_t now_ns, Waiters* waiters);
  // Nobody of `waiters` waits any more; it is empty then.
  void End(Waiters* waiters, int64_t now_ns);

  // Replaces `copy`, as of `now_ns`. Others' waits count when they have ended.
  // Allocates nothing if copy->threads has room for kMaxFaultingThreads.
  void CopyTo(FaultingThreads* copy, int64_t now_ns) const;

 private:
  // Twice the capacity, so that probes stay short; a power of two.
  static constexpr size_t kSlots = 2 * kMaxFaultingThreads;

  struct Thread {
    FaultingThread sums;
    int64_t since_ns = 0;
    Waiters* on = nullptr;  // null: does not wait
    // Neighbours among the waiters, counted from 1; 0: none.
    uint16_t next = 0;
    uint16_t previous = 0;
  };

  static void AddWait(int64_t ns, FaultingThread* sums);
  // The index of `id`, counted from 1, which is made if there is room; 0: it
  // is one of the others.
  uint16_t Find(uint32_t id);
  Thread& At(uint16_t index) { return threads_[index - 1]; }
  void Unlink(Thread* thread);

  size_t count_ = 0;
  FaultingThread others_;
  std::array<Thread, kMaxFaultingThreads> threads_;
  // By hash of the id: an index counted from 1; 0: free.
  std::array<uint16_t, kSlots> slots_{};
};

}  // namespace postcopy

#endif  // UFFD_WAITING_THREADS_H_
