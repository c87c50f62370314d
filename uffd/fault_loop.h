// Reads a VM's page faults and asks for the pages.
#ifndef UFFD_FAULT_LOOP_H_
#define UFFD_FAULT_LOOP_H_

#include <linux/userfaultfd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/life_sign.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "uffd/destination_ram.h"
#include "uffd/fault_records.h"
#include "uffd/fault_times.h"
#include "uffd/install_gate.h"
#include "uffd/installer.h"
#include "uffd/memory_changes.h"
#include "uffd/message_wait.h"
#include "uffd/page_source.h"
#include "uffd/page_state.h"
#include "uffd/pending_faults.h"
#include "uffd/pull_order.h"
#include "uffd/uffd_ops.h"

namespace postcopy {

// Messages taken by one read: as many pages as one urgent request can name.
inline constexpr size_t kMaxFaultBatch = kMaxUrgentPages;

// Pages of zeros that could not be filled at once and are tried again, each
// time that messages have been read and at least once in kRetryMillis.
inline constexpr size_t kMaxDeferredFaults = 64;
inline constexpr int kRetryMillis = 1;

// For how long who receives waits for faults behind its last answer; meanwhile
// nobody looks at the connection, from which nothing is expected. And behind
// how large an answer.
inline constexpr int kStandInMillis = 5;
inline constexpr PageCount kStandInPagesMax{4};

// Counts; see DestinationCounters for what they mean.
struct FaultCounters {
  std::atomic<uint64_t> faults{0};
  std::atomic<uint64_t> duplicates{0};
  std::atomic<uint64_t> local{0};
  std::atomic<uint64_t> deferred{0};  // of these, tried again
  std::atomic<uint64_t> overflowed{0};
  std::atomic<uint64_t> late{0};
  std::atomic<uint64_t> minor{0};
  std::atomic<uint64_t> write_protect{0};
  std::atomic<uint64_t> foreign{0};
  std::atomic<uint64_t> unexpected_events{0};
  std::atomic<uint64_t> lost{0};
  std::atomic<uint64_t> requests{0};
  std::atomic<uint64_t> request_failures{0};
};

// One thread per VM that waits for the userfaultfd and an eventfd, and nothing
// else. Per fault it allocates nothing, writes no log line and takes no lock
// that the bulk lane takes. Who receives the answers may stand in for the
// thread: docs/adr/0034.
//
// What happens to a faulted page:
//   outside every region          counted; its thread goes on waiting
//   received, zeros               filled with zeros here
//   received, in the RAM file     shown to the guest (precopied pages of memory
//                                 that is registered for MINOR); else woken: it
//                                 came while the fault was under way
//   received, a hole all the same lost: poisoned, never zeros
//   received, no file             woken if it is there; else the VMM has thrown
//                                 it away, which nobody else can: zeros
//   missing, asked for            nothing
//   missing                       asked for, once per read for all of them
// In memory of huge pages all of that happens to huge pages, named by their
// first page.
//
// A write to a page that is write-protected, where the VMM has asked for
// messages of those too: the page can be written again.
//
// Messages of one read about memory given up or moved are taken note of before
// its faults are looked at. While the VMM sends such messages they are read
// even if there is no room for more faults: who gives up memory sleeps until
// then, and nothing can be installed. Faults beyond the room are let go, and
// come again by a wake of all RAM when half of the room is free.
//
// The thread ends, and calls on_end with the reason, if the userfaultfd says
// something that this service does not understand, or the VMM is gone.
class FaultLoop {
 public:
  // What it works on; all outlive it.
  struct Parts {
    const DestinationRam* ram;
    UffdOps* ops;
    PageState* state;
    InstallGate* gate;
    MemoryChanges* changes;
    Installer* installer;
    PullOrder* order;
    Clock* clock;
    // Told of every fault of the VM's RAM. May be null.
    FaultRecords* records = nullptr;
    // Pages that were missing have been given up. By the thread, or by who
    // stands in; not by both at a time.
    std::function<void()> on_given_up;
    // Called at most once, by the thread, and not after Stop has begun.
    std::function<void(absl::Status)> on_end;
  };

  // RESOURCE_EXHAUSTED if there is no descriptor left.
  static absl::StatusOr<std::unique_ptr<FaultLoop>> Create(Parts parts);
  // Stop().
  ~FaultLoop();

  // Starts the thread. Call once. RESOURCE_EXHAUSTED if there is none.
  absl::Status Start();
  // Ends it and waits for it, and for who stands in. Idempotent. Not from
  // `on_end` or a request. Nobody counts as waiting from then on.
  void Stop();

  // The thread that receives what is asked for here serves faults in the loop's
  // stead as long as it has one of these: a guest thread that touches one page
  // after the other then wakes nobody but that. By one thread at a time.
  class StandIn {
   public:
    // For an answer of `pages` pages that is about to be installed. Does
    // nothing if it is large, or more is outstanding, so that others' faults
    // need not wait. The loop serves faults until it is installed where that
    // may wait for one to be served: where memory may be given up, of which the
    // kernel wants to have told first, and where it is written into a file,
    // whose lock a thread may hold that has faulted.
    StandIn(FaultLoop* loop, PageCount pages);
    // The loop serves faults again.
    ~StandIn();
    StandIn(const StandIn&) = delete;
    StandIn& operator=(const StandIn&) = delete;

    // Behind the installing: waits for faults and serves them until there is
    // something to receive, or kStandInMillis have passed.
    void Serve();

   private:
    FaultLoop& loop_;
    const std::lock_guard<std::mutex> alive_;
    const bool small_;
    bool active_;
  };

  // Asks `source` from now on; nullptr: nobody, faults are only collected. When
  // this returns, no request to the former source is running. Pages pending and
  // still missing are asked for at once; returns the error of that, in which
  // case they stay pending. Any thread.
  absl::Status SetSource(PageSource* source);

  // `page` has been installed and is received, from an answer that was here at
  // `answered_ns`. Returns when its fault was first read, nullopt if no such
  // fault is outstanding. Wakes who faulted meanwhile: a thread that found the
  // page, threw it away and touched it again before it was known to be
  // received, was taken for one that waits for it. Any thread.
  std::optional<int64_t> Resolve(PageIndex page, int64_t answered_ns,
                                 int64_t installed_ns);
  // By the clock, with the answer of this moment.
  std::optional<int64_t> Resolve(PageIndex page);

  // Pages of `run` have been received from an answer that was here at
  // `answered_ns`, and who waited has been woken: by the bulk lane, which
  // answers nothing that was asked for here, or by a part of an answer. Takes
  // no lock. Any thread.
  void OnReceived(PageRun run, int64_t answered_ns);
  // Whatever is missing has been poisoned: nobody waits now or later. Any
  // thread.
  void OnPoisoned();

  // Of faults whose page was fetched. Any thread.
  const FaultTimes& times() {
    pending_.Settle();
    return times_;
  }
  // For how long at least one page was waited for, until now, and who waited.
  // Faults that are answered here, and those for which there was no room, are
  // not counted. Any thread.
  int64_t StalledNanos() { return pending_.StalledNanos(clock_.NowNanos()); }
  FaultingThreads Threads() { return pending_.Threads(clock_.NowNanos()); }

  size_t outstanding() const { return pending_.size(); }
  const FaultCounters& counters() const { return counters_; }

  // False if the thread has not come round since the last call; true before
  // Start and once it has ended. By one thread at a time.
  bool ShowsLife();

  // One read and what follows from it, for simulations that have no thread.
  // True if there was anything to do. REQUIRES: Start was not called.
  absl::StatusOr<bool> ServeOnce() { return Serve(/*woken_ns=*/0); }

 private:
  FaultLoop(Parts parts, UniqueFd wake_fd);

  void Run();
  absl::Status Loop();
  // Waits for messages, if there is room for them, or for wake_fd_, or until
  // deferred pages are to be tried again.
  absl::Status Wait();
  // Has the thread, while it waits, woken by messages for which there is room.
  // REQUIRES: turn_mutex_.
  absl::Status ListenIfRoom();
  bool BeginStandIn(size_t outstanding_max);
  void EndStandIn();
  // Nothing has to be done later, but for what `outstanding_max` pages need.
  // REQUIRES: turn_mutex_.
  bool MayBeStoodIn(size_t outstanding_max) const;
  bool Idle();
  // As `woken` says. What it fails with, or another turn has failed with
  // before.
  absl::Status Turn(const MessageWait::Woken& woken);
  // One read and what follows from it. `woken_ns` is when messages were seen;
  // 0: when they were read. REQUIRES: turn_mutex_, as all below but WakeUp.
  absl::StatusOr<bool> Serve(int64_t woken_ns);
  // Reads into messages_, and takes note of what they say about memory. Returns
  // how many there are; `noted` is the first error of the notes.
  absl::StatusOr<size_t> ReadMessages(absl::Status* noted);
  // Those of removals, then faults.
  absl::Status HandleAll(absl::Span<const uffd_msg> messages);
  absl::Status Handle(const uffd_msg& message, int64_t now_ns);
  void RecordFault(PageIndex page, uint64_t flags,
                   const PendingFaults::Message& message);
  absl::Status HandleReceived(PageIndex page);
  absl::Status FillLocally(PageIndex page);
  absl::Status Show(PageIndex page);
  absl::Status Unprotect(PageIndex page);
  // True for a fault of a kind that memory is registered for.
  bool IsExpected(const uffd_msg& message) const;
  // `page` is received, and looked at again later.
  void Defer(PageIndex page);
  absl::Status RetryDeferred();
  absl::Status Collect(PageIndex page, const PendingFaults::Message& message);
  // There is room for a fault, or for those that were let go.
  bool HasRoom() const;
  void TakeBackOverflow();
  absl::Status Lose(PageIndex page);
  // Hands new_pages_ to the source.
  void AskForNew();
  absl::Status AskAgain();  // REQUIRES: source_mutex_
  absl::Status Ask(absl::Span<const PageIndex> pages);  // and here
  void WakeUp();

  const DestinationRam& ram_;
  UffdOps& ops_;
  PageState& state_;
  InstallGate& gate_;
  MemoryChanges& changes_;
  Installer& installer_;
  PullOrder& order_;
  Clock& clock_;
  FaultRecords* const records_;  // may be null
  const std::function<void()> on_given_up_;
  const std::function<void(absl::Status)> on_end_;
  const UniqueFd wake_fd_;  // eventfd: stop, or there is room again
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> runs_{false};
  LifeSign life_;
  std::atomic<bool> wants_room_{false};
  std::atomic<bool> poisoned_{false};
  FaultCounters counters_;
  FaultTimes times_{records_};
  PendingFaults pending_{&times_};

  // Between the thread and who stands in.
  std::unique_ptr<MessageWait> wait_;  // from Start on
  std::mutex stand_in_mutex_;          // held to stand in; before turn_mutex_
  // Held for a turn. Guards what follows.
  std::mutex turn_mutex_;
  bool stood_in_ = false;
  absl::Status failed_;  // what ended the loop
  std::array<uffd_msg, kMaxFaultBatch> messages_;
  std::array<PageIndex, kMaxFaultBatch> new_pages_;
  size_t new_count_ = 0;
  std::array<PageIndex, kMaxDeferredFaults> deferred_;
  size_t deferred_count_ = 0;
  bool retrying_ = false;    // in RetryDeferred
  bool overflowed_ = false;  // faults were let go
  // When the messages that are being handled were seen; 0: when they were read.
  int64_t woken_ns_ = 0;

  // Held while a page goes from new to asked for, so that no page is asked for
  // twice, and during RequestUrgent. Shared with whoever reconnects.
  std::mutex source_mutex_;
  PageSource* source_ = nullptr;
  std::array<PageIndex, kMaxOutstandingFaults> again_;
};

}  // namespace postcopy

#endif  // UFFD_FAULT_LOOP_H_
