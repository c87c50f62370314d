// The destination of one VM: stores precopied pages, serves its faults, fetches
// the rest.
#ifndef UFFD_DESTINATION_VM_H_
#define UFFD_DESTINATION_VM_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "uffd/background_pull.h"
#include "uffd/bulk_share.h"
#include "uffd/destination_ram.h"
#include "uffd/fault_loop.h"
#include "uffd/fault_records.h"
#include "uffd/fault_times.h"
#include "uffd/install_gate.h"
#include "uffd/install_strategy.h"
#include "uffd/installer.h"
#include "uffd/latency_histogram.h"
#include "uffd/map_ahead.h"
#include "uffd/memory_changes.h"
#include "uffd/page_source.h"
#include "uffd/page_state.h"
#include "uffd/precopy_store.h"
#include "uffd/pull_order.h"
#include "uffd/uffd_ops.h"

namespace postcopy {

// Numbers of one VM. Each is right at its own moment; when nothing is under way
// total == missing + precopied - discarded + faulted + background + given_up.
struct DestinationCounters {
  PageCount total;
  // Pages whose current content is not here.
  PageCount missing;
  // Received pages that the source said are all zeros.
  PageCount zero;

  // Pages that became received by StorePrecopied; pages that DiscardStale made
  // missing again.
  PageCount precopied;
  PageCount discarded;
  // Pages that became received by OnUrgentPages and by OnBulkPages.
  PageCount faulted;
  PageCount background;
  // Pages that the VMM gave up or unmapped while they were missing: zeros, if
  // anybody still looks.
  PageCount given_up;

  // Messages of the userfaultfd, and among them: for a page that was asked for
  // already; for a page of zeros, answered here; for a page that had come in
  // the meantime; for an address outside the VM's RAM.
  uint64_t faults = 0;
  uint64_t duplicate_faults = 0;
  uint64_t local_faults = 0;
  uint64_t late_faults = 0;
  // Messages of touches of pages that are in their file but not in sight; and
  // of writes to pages that are write-protected.
  uint64_t minor_faults = 0;
  uint64_t write_protect_faults = 0;
  uint64_t foreign_faults = 0;
  // Faults that had to be tried again, and such for which there was no room.
  uint64_t deferred_faults = 0;
  uint64_t overflowed_faults = 0;
  // Received pages that were shown to the guest before it touched them, or that
  // turned out to need nothing.
  PageCount mapped_ahead;
  // Messages about memory given up, unmapped and moved.
  uint64_t removals = 0;
  uint64_t unmaps = 0;
  uint64_t remaps = 0;
  // Messages that mean nothing here; the first ends the serving.
  uint64_t unexpected_events = 0;
  // Received pages that vanished from the RAM file, and were poisoned.
  uint64_t lost_pages = 0;
  // Faulted pages asked for and not here yet.
  uint64_t outstanding_faults = 0;

  // Pages found in place when they were to be installed.
  uint64_t already_present = 0;
  // Pages not installed because the VMM has unmapped them; they count as
  // received.
  uint64_t unmapped_pages = 0;
  // Times an install was tried again because the kernel said EAGAIN.
  uint64_t install_retries = 0;

  // Requests handed to the source, and those it refused.
  uint64_t urgent_requests = 0;
  uint64_t urgent_request_failures = 0;
  uint64_t bulk_requests = 0;
  uint64_t bulk_request_failures = 0;
};

// Created when the VMM has attached, it goes one way:
//
//   StorePrecopied*  DiscardStale  StartServing  StartBackground  Finish
//
// and Abort ends it from anywhere. Out of that order a call returns
// FAILED_PRECONDITION and does nothing.
//
// Threads: each method says who may call it. OnUrgentPages and OnBulkPages run
// concurrently with each other and with all else but destruction; the rest is
// called by one thread at a time. Two threads run inside between StartServing
// and the end: the fault loop, and the background thread; at first also one
// that maps ahead, where there is memory registered for MINOR, or where pages
// wait.
//
// Errors of pages from the peer: OUT_OF_RANGE (outside the layout) and
// INVALID_ARGUMENT (a run of no pages, with a part of a huge page, or with data
// of another length); then no run of the call was taken. ABORTED means
// everywhere: the VMM's process is gone. RESOURCE_EXHAUSTED, UNAVAILABLE,
// INTERNAL: of the kernel; part of the runs may have been taken, and the call
// can be made again.
class DestinationVm {
 public:
  // Who registers memory with the userfaultfd first, and so may end that.
  enum class RegisteredBy { kThis, kVmm };

  // Registers every region with `ops`. INVALID_ARGUMENT names the region that
  // does not fit (DestinationRam) or that the kernel refused, and what the VMM
  // should change. What had been registered is unregistered again, unless the
  // VMM had done it: its guest may run already, and would read zeros.
  // `clock` outlives the object.
  static absl::StatusOr<std::unique_ptr<DestinationVm>> Create(
      RamLayout layout, const std::vector<DestinationRegion>& regions,
      std::unique_ptr<UffdOps> ops, Clock* clock,
      RegisteredBy registered_by = RegisteredBy::kThis);

  DestinationVm(const DestinationVm&) = delete;
  DestinationVm& operator=(const DestinationVm&) = delete;

  // Abort() if it has not ended. REQUIRES: no other call runs or will.
  ~DestinationVm();

  const RamLayout& layout() const { return ram_.layout(); }
  // Addresses in it may change while the VM is served.
  const DestinationRam& ram() const { return ram_; }
  // The memfd of PageState, for those who keep it over a restart.
  int state_fd() const { return state_->fd(); }

  // Takes pages of a precopy round, replacing what was there. In order: a
  // later call's content wins. Runs may have parts of huge pages. No runs at
  // all is not an error. Before StartServing only. FAILED_PRECONDITION if a
  // region has no file to put them into, and none where they can wait.
  absl::Status StorePrecopied(absl::Span<const ReceivedRun> runs);

  // Makes every page of `stale` missing, and of huge pages those that are not
  // here as a whole. The first call of this or of
  // StorePrecopied empties every page that is not received, whoever has written
  // to it: the VMM may have loaded a ROM there. From here on a touch of a
  // missing page is a fault. Memory without a file cannot be emptied: what the
  // VMM had touched there stays. Returns how many pages had been received and
  // are missing now. INVALID_ARGUMENT unless stale.pages() is the layout's. May
  // be called again after more StorePrecopied. On failure call it again before
  // the guest runs.
  absl::StatusOr<PageCount> DiscardStale(PageBitmapView stale);

  // The order in which StartBackground goes through the pages, from the next
  // StartServing on; without it PullOrderKind::kAdaptive. Before StartServing
  // only.
  absl::Status SetPullOrder(std::unique_ptr<PullOrder> order);

  // Has every fault told to `records` from the next StartServing on; nullptr,
  // as from the start: nobody. It is let go when the object is destroyed, with
  // all that it will be told. Before StartServing only.
  absl::Status RecordFaults(std::shared_ptr<FaultRecords> records);

  // Keeps `held` as long as anything of the VM is held; lets it go last.
  void Keep(std::shared_ptr<const void> held) { held_ = std::move(held); }

  // Serves faults from now on. `source` outlives the serving, or the next
  // OnSourceLost. Must follow a DiscardStale with no StorePrecopied between.
  // RESOURCE_EXHAUSTED, and not begun, if there is no thread or descriptor.
  // What waits in files of this process is put in place from now on.
  //
  // `on_end` is called when no page is missing and none waits, with OK
  // (DATA_LOSS if some were lost, see counters), and when faults are no longer
  // served, with an error: each at most once, an OK never after an error; by a
  // thread of this object, perhaps before this returns. It is not running when
  // Finish or Abort has returned, and not called afterwards; so it must not
  // call these, nor destroy the object, nor wait for who does.
  //
  // The background takes turns with the other VMs of `bulk_share`, which
  // outlives the object; nullptr: it goes as fast as it can.
  absl::Status StartServing(PageSource* source,
                            uint64_t bulk_limit_bytes_per_second,
                            std::function<void(absl::Status)> on_end,
                            BulkShare* bulk_share = nullptr);

  // Begins to fetch what nobody has touched yet. Call it when the guest has
  // been resumed, so that its first faults are not behind bulk.
  absl::Status StartBackground();

  // 0: no limit. Faulted pages are exempt. Any thread, any time after
  // StartServing; before it does nothing.
  void SetBulkLimit(uint64_t bytes_per_second);

  // Takes the answer to one RequestUrgent: installs the pages and wakes who
  // waits for them. At most kMaxUrgentPages pages, else INVALID_ARGUMENT. Not
  // an error: pages that nobody asked for, or that are here already (their
  // content is left alone).
  absl::Status OnUrgentPages(absl::Span<const ReceivedRun> runs);

  // The same for a thread that does nothing but receive such answers: it then
  // stands in for the fault loop until there is another (FaultLoop::StandIn).
  // Not from within RequestUrgent.
  absl::Status OnUrgentPagesStandingIn(absl::Span<const ReceivedRun> runs);

  // Takes the answer to one RequestBulk, which is free for another request
  // after it. Pages of it that `runs` does not have are asked for again. Else
  // as OnUrgentPages, with any number of pages.
  absl::Status OnBulkPages(absl::Span<const ReceivedRun> runs);

  // Takes more of the pages that the source says were written last, the most
  // recent first: a hint to the order. OUT_OF_RANGE or INVALID_ARGUMENT as of
  // pages, RESOURCE_EXHAUSTED beyond kRecentlyDirtiedRunsMax in all; then none
  // of `runs` was taken. Not taken either, and no error: runs that would make
  // it more than 4 x pages() + kRecentlyDirtiedRunsMax pages in all. By the
  // thread that calls OnBulkPages.
  absl::Status OnRecentlyDirtied(absl::Span<const PageRun> runs);

  // The source answers no more. When this returns, no request to it is
  // running, and it can be destroyed. Faults go on to be collected. Must not
  // be called from within a request. Not an error if already lost.
  void OnSourceLost();

  // Goes on with `source`: faulted pages that are still missing are asked for
  // again at once, the background continues. Implies OnSourceLost. The error is
  // RequestUrgent's; the pages are kept for the next OnSourceBack.
  absl::Status OnSourceBack(PageSource* source);

  // No page that is missing will ever come: whoever touches one gets SIGBUS
  // from now on, a vCPU as well, and who waits goes on to that. Serving goes on
  // for pages that are here. UNIMPLEMENTED: the kernel is older than 6.6, and
  // nothing has changed. CANCELLED soon after `give_up` has become true.
  // Waits until no page waits in a file of this process. Any thread while
  // serving.
  absl::Status PoisonMissing(const std::atomic<bool>& give_up);

  // Ends a migration that is complete: stops all threads, unregisters, and with
  // that ends write protection too: a VMM that needs it protects anew.
  // FAILED_PRECONDITION while pages are missing, or wait. After another error
  // the object has ended but regions may be registered still. Idempotent.
  absl::Status Finish();

  // Stops all threads. Threads of the VMM that wait for a page go on waiting
  // (for whoever takes the userfaultfd over), as long as somebody has a
  // descriptor of it: with the last one closed, missing pages become zeros.
  // So `release`, which unregisters and thereby does just that, is for a
  // migration cancelled before the guest ran here. Idempotent.
  void Abort(bool release = false);

  // False if the fault loop has not come round since the last call; true where
  // none runs. By one thread at a time, any time.
  bool ShowsLife();

  // Any thread, any time.
  DestinationCounters counters() const;
  // From reading a fault to its page being installed, for pages that a source
  // brought, over whichever lane. Any thread, any time.
  LatencySnapshot FaultLatency() const;
  // Where that time went and who waited, now and until now. An answer that had
  // to be given again, since the kernel refused it, was there the first time.
  // Any thread, any time.
  FaultTimesSnapshot FaultStages() const;

 private:
  enum class Stage { kPrecopy, kDiscarded, kServing, kEnded };

  using Install = ReceiveResult (DestinationVm::*)(const ReceivedRun&,
                                                   int64_t answered_ns);

  DestinationVm(DestinationRam ram, std::unique_ptr<PageState> state,
                std::unique_ptr<UffdOps> ops, Clock* clock);

  // Makes installer_.
  absl::Status RegisterAll();
  absl::StatusOr<std::unique_ptr<InstallStrategy>> RegisterRegion(size_t index);
  // Whether what is received may be out of the guest's sight.
  bool AnyOutOfSight() const;
  // Where the pages are now.
  absl::Status UnregisterAll();
  absl::Status UnregisterPiece(const DestinationRam::Piece& piece);
  // Lets go who still waits for a message of his to be read. REQUIRES: nothing
  // is registered any more, and nobody else reads.
  void ReadLastMessages();
  // How many pages `runs` have, huge ones where a region is made of them; an
  // error unless every run can be taken.
  absl::StatusOr<PageCount> Validate(absl::Span<const ReceivedRun> runs) const;
  absl::Status CheckRun(const ReceivedRun& run) const;
  absl::StatusOr<PageCount> CountUnits(PageRun run) const;
  // Before StartServing; else WrongStage(call).
  absl::Status NotServingYet(const char* call) const;
  // FAILED_PRECONDITION, saying why not `call`.
  absl::Status WrongStage(const char* call) const;
  ReceiveResult InstallUrgent(const ReceivedRun& run, int64_t answered_ns);
  ReceiveResult InstallBulk(const ReceivedRun& run, int64_t answered_ns);
  // Installs all of `runs`, counts what became received in `counter`.
  absl::Status InstallAll(absl::Span<const ReceivedRun> runs, Install install,
                          int64_t answered_ns, std::atomic<uint64_t>* counter);
  // The faults of `run`, which has been installed.
  void ResolveAll(PageRun run, int64_t answered_ns);
  void AddServingCounters(DestinationCounters* counters) const;
  // What on_end is told.
  absl::Status EndStatus(absl::Status status) const;
  void StopThreads();

  std::shared_ptr<const void> held_;  // first, so that it goes last
  DestinationRam ram_;                // changed by changes_ alone
  // Constant after construction.
  const std::unique_ptr<PageState> state_;
  const std::unique_ptr<UffdOps> ops_;
  Clock& clock_;

  InstallGate gate_;
  MemoryChanges changes_;
  InstallStrategies strategies_;  // set by Create
  Installer installer_;
  PrecopyStore store_;
  MapAhead map_ahead_;
  std::unique_ptr<PullOrder> order_;       // set before kServing
  std::shared_ptr<FaultRecords> records_;  // likewise; may be null
  // Of the bulk receiver.
  size_t dirtied_runs_ = 0;
  PageCount dirtied_pages_;
  // When the urgent answer came that is to be given again; 0: none.
  std::atomic<int64_t> refused_answer_ns_{0};
  std::atomic<uint64_t> precopied_{0};
  std::atomic<uint64_t> discarded_{0};
  std::atomic<uint64_t> faulted_{0};
  std::atomic<uint64_t> background_{0};
  // Changed by the controlling thread. Who sees kServing sees fault_loop_ and
  // pull_ set, and so does, for good, who sees served_.
  std::atomic<Stage> stage_{Stage::kPrecopy};
  std::atomic<bool> served_{false};
  // Set before kServing, kept until destruction.
  std::unique_ptr<BackgroundPull> pull_;
  std::unique_ptr<FaultLoop> fault_loop_;
};

}  // namespace postcopy

#endif  // UFFD_DESTINATION_VM_H_
