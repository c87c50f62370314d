// Faulted pages that were asked for and are not installed yet, and who waits
// for them.
#ifndef UFFD_PENDING_FAULTS_H_
#define UFFD_PENDING_FAULTS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/post_box.h"
#include "uffd/stall_timer.h"
#include "uffd/waiting_threads.h"

namespace postcopy {

class FaultTimes;

// Faulted pages of one VM that wait for the source. Beyond it the kernel queues
// faults: a guest has one per vCPU, more only with asynchronous page faults and
// I/O threads.
inline constexpr size_t kMaxOutstandingFaults = 1024;

// A fixed table, 140 KiB, no allocation. Thread-safe; its lock is shared by the
// fault loop and the urgent lane's receiver, and held for one probe of a hash
// table and those who wait for its page; or for one copy in CopyTo(), for the
// pages of one request in MarkAsked(), for the waits that the bulk lane has
// ended since the lock was last held. The bulk lane's receiver needs
// SomebodyWaits() and PostEnds() only, and never takes it.
//
// A page is in the table from Add() to Take(). Somebody waits for it from Add()
// to the first of EndWait(), PostEnds() and Take(): its bytes may come before
// the answer to the request for it. Times are of one monotonic clock, in
// nanoseconds.
class PendingFaults {
 public:
  enum class AddResult { kNew, kDuplicate, kFull };

  // `times` is told of faults that PostEnds() ended, and outlives this;
  // nullptr: nobody is.
  explicit PendingFaults(FaultTimes* times = nullptr);

  // What the message of a fault says, and when.
  struct Message {
    // It was read.
    int64_t read_ns = 0;
    // So much before that it was seen to be there to be read.
    int64_t unread_ns = 0;
    // The thread that faulted; 0: not known.
    uint32_t thread = 0;
  };
  // Adds `page`, first read at `message.read_ns`. kDuplicate leaves the earlier
  // times, and is remembered; its thread waits too, if anybody does still.
  // kFull: there are kMaxOutstandingFaults others.
  AddResult Add(PageIndex page, const Message& message);
  AddResult Add(PageIndex page, int64_t read_ns) {
    return Add(page, {.read_ns = read_ns, .unread_ns = 0, .thread = 0});
  }

  // `pages`, as far as they are here, are being asked for. A later call counts.
  void MarkAsked(absl::Span<const PageIndex> pages, int64_t now_ns);

  // What was pending.
  struct Fault {
    int64_t first_read_ns = 0;
    int64_t unread_ns = 0;
    // When it was asked for; INT64_MAX: not yet.
    int64_t asked_ns = INT64_MAX;
    // It was read again meanwhile.
    bool duplicated = false;
    // Nobody waits for it any more: EndWait() was before.
    bool ended = false;

    friend bool operator==(const Fault&, const Fault&) = default;
  };
  // Removes `page`; nullopt if it is not there. Ends the waits for it.
  std::optional<Fault> Take(PageIndex page, int64_t now_ns);
  // Ends the waits for `page`, which stays. nullopt if nobody waits for it.
  std::optional<Fault> EndWait(PageIndex page, int64_t now_ns);

  // The same for every page for which `is_over`.
  template <typename IsOver>
  void EndWaits(IsOver is_over, int64_t now_ns) {
    if (!SomebodyWaits()) return;
    for (size_t at = 0; const auto page = NextWaited(&at);) {
      if (is_over(*page)) EndWait(*page, now_ns);
    }
  }

  // The waits for all pages for which `is_here` have ended at `now_ns`, by
  // bytes of an answer that was here at `answered_ns`. Takes no lock: whoever
  // takes it next sees to the rest, as if it had been done now. More ends than
  // the table has pages are not taken note of, and end with Take().
  template <typename IsHere>
  void PostEnds(IsHere is_here, int64_t answered_ns, int64_t now_ns) {
    for (size_t at = 0; const auto page = NextWaited(&at);) {
      if (is_here(*page) && StopWatching(at - 1, *page)) {
        posted_.Post({*page, answered_ns, now_ns});
      }
    }
  }
  // Sees to what was posted, so that `times` knows it.
  void Settle();

  // True if somebody waits for a page. Takes no lock. Who makes a page received
  // before this call, and who calls Add() before looking whether the page is
  // received, cannot both miss each other.
  bool SomebodyWaits() const { return waited_.fetch_add(0) > 0; }
  // A page that somebody waits for, the next behind `*at`, which begins at 0;
  // nullopt if there are no more. Takes no lock: a page may have come
  // meanwhile. Misses none that was added before SomebodyWaits() was called.
  std::optional<PageIndex> NextWaited(size_t* at) const;

  // For how long at least one page was waited for, until `now_ns`, with what is
  // going on. Never goes back.
  int64_t StalledNanos(int64_t now_ns);
  // As of `now_ns`.
  FaultingThreads Threads(int64_t now_ns);

  // How many pages can be added.
  size_t Room() const;
  size_t size() const { return kMaxOutstandingFaults - Room(); }

  // Copies the pages to `pages`, in no order; returns how many there are.
  // REQUIRES: pages.size() >= kMaxOutstandingFaults.
  size_t CopyTo(absl::Span<PageIndex> pages) const;

 private:
  // Twice the capacity, so that probes stay short; a power of two.
  static constexpr size_t kSlots = 2 * kMaxOutstandingFaults;
  static constexpr uint16_t kFree = UINT16_MAX;
  static constexpr uint64_t kNobody = UINT64_MAX;

  struct PostedEnd {
    PageIndex page;
    int64_t answered_ns = 0;
    int64_t ended_ns = 0;
  };
  struct Slot {
    uint16_t entry = kFree;
    PageIndex page;
  };
  // Stays where it is while its page is in the table, unlike its slot.
  struct Entry {
    Fault fault;
    WaitingThreads::Waiters waiters;
  };

  static size_t HomeOf(PageIndex page);
  // True for the first who calls this for the wait; without the lock.
  bool StopWatching(size_t entry, PageIndex page) {
    uint64_t expected = page.value();
    if (!watched_[entry].compare_exchange_strong(expected, kNobody)) {
      return false;
    }
    waited_.fetch_sub(1);
    return true;
  }
  // All REQUIRE mutex_.
  // The slot of `page`, or the free one where it would go.
  size_t Find(PageIndex page) const;
  // Frees `slot` and closes the gap in its chain.
  void Erase(size_t slot);
  void BeginWait(uint16_t entry, PageIndex page, const Message& message);
  // REQUIRES: its wait has not ended.
  void EndWaitOf(const Slot& slot, int64_t now_ns);
  void SettleLocked();

  FaultTimes* const times_;
  // The page that somebody waits for, by entry; kNobody. And how many entries
  // have been in use since nobody waited. Set with the lock.
  std::array<std::atomic<uint64_t>, kMaxOutstandingFaults> watched_;
  std::atomic<size_t> watched_end_{0};
  mutable std::atomic<uint64_t> waited_{0};
  PostBox<PostedEnd, kMaxOutstandingFaults> posted_;

  // Whoever takes it calls SettleLocked() before any wait begins or ends.
  mutable std::mutex mutex_;
  size_t size_ = 0;
  std::array<Slot, kSlots> slots_;
  std::array<Entry, kMaxOutstandingFaults> entries_;
  // Entries from index size_ on are free.
  std::array<uint16_t, kMaxOutstandingFaults> free_;
  StallTimer stall_;
  WaitingThreads threads_;
};

}  // namespace postcopy

#endif  // UFFD_PENDING_FAULTS_H_
