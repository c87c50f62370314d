// A VM that is resumed from a snapshot, on this host or on another.
#ifndef UFFD_SNAPSHOT_VM_H_
#define UFFD_SNAPSHOT_VM_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"
#include "uffd/bulk_share.h"
#include "uffd/destination_vm.h"
#include "uffd/fault_records.h"
#include "uffd/fault_times.h"
#include "uffd/latency_histogram.h"
#include "uffd/snapshot_pages.h"
#include "uffd/uffd_ops.h"
#include "uffd/working_set.h"
#include "uffd/working_set_recorder.h"

namespace postcopy {

// Memory of the VMM, and where in the snapshot its content is.
struct SnapshotRegion {
  HostAddress host_address;
  ByteCount length;
  uint64_t file_offset = 0;
  ByteCount page_size{kPageSize};
};

// Answers the faults of one VM from a snapshot that nobody changes. The VMM's
// memory is private to it; what it had touched before stays as it is.
// Thread-safe.
class SnapshotVm {
 public:
  struct Options {
    // Fetch also what nobody touches, at most so many bytes per second (0: no
    // limit).
    bool prefetch = false;
    uint64_t prefetch_bytes_per_second = 0;
    // Pages to fetch first; without `prefetch` only these. May be null. One of
    // a VM with another number of pages is not used.
    std::shared_ptr<const WorkingSet> working_set;
    // Write down what is touched. Nothing is fetched ahead then: pages that are
    // there are touched in silence.
    bool record_working_set = false;
    // Told of every fault; let go with the object. May be null.
    std::shared_ptr<FaultRecords> records;
    // Whom it takes turns with at that; outlives the object. nullptr: nobody.
    BulkShare* bulk_share = nullptr;
    // Called at most twice, by threads of this object: with OK when no page is
    // missing, and with an error when faults are no longer answered from the
    // file. A host that is short of memory is no such error: pages are tried
    // again until there is some. DATA_LOSS: it cannot be read, and what was
    // missing is poisoned (who touches it gets SIGBUS), never zeros. ABORTED:
    // the VMM's process is gone. It must not destroy the object.
    std::function<void(const absl::Status&)> on_end;
    // Called by a thread of this object when a source that is elsewhere cannot
    // be reached, with why, and with OK when it is back; in between, threads
    // that touch a missing page wait. Must not block. May be empty.
    std::function<void(const absl::Status&)> on_source;
    // Called so when such a source has ended a session with an error, which is
    // tried again: for the first, and then at most once in
    // kSourceErrorNanos, with how many there have been in all. Must not block.
    // May be empty.
    std::function<void(const absl::Status&, uint64_t errors)> on_source_error;
  };

  // How long errors of a source are taken for one trouble.
  static constexpr int64_t kSourceErrorNanos = 60 * kNanosPerSecond;

  // Serves when it returns. INVALID_ARGUMENT says what the VMM should change,
  // or that the snapshot is too short for it; else the errors of
  // DestinationVm::Create and of `open`. `clock` outlives the object.
  static absl::StatusOr<std::unique_ptr<SnapshotVm>> Create(
      const OpenSnapshotPages& open, const std::vector<SnapshotRegion>& regions,
      std::unique_ptr<UffdOps> ops, Options options, Clock* clock);

  SnapshotVm(const SnapshotVm&) = delete;
  SnapshotVm& operator=(const SnapshotVm&) = delete;
  // Stop().
  ~SnapshotVm();

  // Ends the serving; waits for reads of a file that are under way. Threads of
  // the VMM that wait for a page go on waiting as long as the VMM keeps its
  // userfaultfd. When it returns, on_end is not called any more. Idempotent.
  void Stop();

  // True if options.working_set was of another VM.
  bool ignored_working_set() const { return ignored_working_set_; }
  // What was touched, without the snapshot's size; without runs if nothing was,
  // or nothing was to be recorded. REQUIRES: Stop has returned.
  WorkingSet recorded() const;

  // Sessions that a source elsewhere has ended with an error, and whether there
  // was one within kSourceErrorNanos.
  uint64_t source_errors() const { return source_errors_.load(); }
  bool source_fails() const;

  // As DestinationVm's.
  bool ShowsLife() { return vm_->ShowsLife(); }
  DestinationCounters counters() const { return vm_->counters(); }
  LatencySnapshot FaultLatency() const { return vm_->FaultLatency(); }
  FaultTimesSnapshot FaultStages() const { return vm_->FaultStages(); }

 private:
  using Take = absl::Status (DestinationVm::*)(absl::Span<const ReceivedRun>);

  SnapshotVm(std::unique_ptr<DestinationVm> vm, Options options, Clock* clock)
      : options_(std::move(options)), clock_(*clock), vm_(std::move(vm)) {}

  absl::Status Start(const OpenSnapshotPages& open,
                     std::vector<SnapshotExtent> extents);
  SnapshotSink SinkOfThis();
  absl::Status Serve();
  // Gives the VM the order that the options ask for.
  absl::Status ChooseOrder();
  bool fetches_ahead() const {
    return !options_.record_working_set &&
           (options_.prefetch || working_set_ != nullptr);
  }
  // Hands an answer to the VM, as often as it takes.
  absl::Status Deliver(Take take, absl::Span<const ReceivedRun> runs);
  // The snapshot cannot be read any more.
  void OnFailure(absl::Status status);
  void OnLost();
  void OnBack();
  void OnTrouble(const absl::Status& status);
  void OnError(const absl::Status& status);

  const Options options_;
  Clock& clock_;
  const std::unique_ptr<DestinationVm> vm_;
  // Constant once serving.
  std::shared_ptr<const WorkingSet> working_set_;
  bool ignored_working_set_ = false;
  const WorkingSetRecorder* recorder_ = nullptr;  // vm_'s
  std::unique_ptr<SnapshotPages> source_;
  std::atomic<bool> stopping_{false};
  std::mutex stop_mutex_;  // held while threads are joined

  // Held while serving begins and while a source is lost or comes back.
  std::mutex source_mutex_;
  bool in_trouble_ = false;    // of the source's thread
  int64_t error_told_ns_ = 0;  // of the source's thread
  std::atomic<uint64_t> source_errors_{0};
  std::atomic<int64_t> source_error_ns_{0};  // of the last

  std::mutex mutex_;
  bool serving_ = false;      // guarded by mutex_
  absl::Status early_error_;  // guarded by mutex_: of the source, before that
};

}  // namespace postcopy

#endif  // UFFD_SNAPSHOT_VM_H_
