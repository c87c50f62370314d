// VMs that Firecracker restores from a snapshot, of this host or of another.
#ifndef CMD_FAULTD_SNAPSHOT_SERVICE_H_
#define CMD_FAULTD_SNAPSHOT_SERVICE_H_

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/daemon/serve.h"
#include "cmd/daemon/vm_limits.h"
#include "cmd/faultd/fault_recorder.h"
#include "cmd/firecracker/firecracker_listener.h"
#include "cmd/log/log.h"
#include "cmd/metrics/metric_families.h"
#include "cmd/metrics/vm_totals.h"
#include "cmd/security/client_security.h"
#include "uffd/bulk_share.h"
#include "uffd/fault_records.h"
#include "uffd/remote_snapshot.h"
#include "uffd/snapshot_file.h"
#include "uffd/snapshot_pages.h"
#include "uffd/snapshot_vm.h"
#include "uffd/working_set.h"

namespace postcopy {

// Takes every VM that hands over its page faults at one socket, and answers
// them from one file of guest memory: the page-fault handler that Firecracker's
// snapshot restore asks for. Thread-safe.
class SnapshotService {
 public:
  // Refused VMs that are told of one by one, per second; of more, only their
  // number.
  static constexpr int kRefusalsLoggedPerSecond = 5;

  struct Options {
    // See FirecrackerListener::Options.
    std::string socket_path;
    int inherited_socket = -1;
    std::vector<uid_t> allowed_uids;
    size_t vms_max = kMaxVms;
    // Firecracker's mem_file_path. Must not change while a VM is served.
    std::string snapshot_path;
    SnapshotAccess access = SnapshotAccess::kBuffered;
    // Instead of it: host:port of a pageserverd and what that calls the file.
    std::string source_address;
    std::string source_name;
    // How it is dialled.
    ClientSecurity dialling = {};
    // See SnapshotVm::Options.
    bool prefetch = false;
    uint64_t prefetch_bytes_per_second = 0;
    // A file with the pages to fetch first (uffd/working_set.h). If there is
    // none, what the first VM touches becomes one when that VM has gone. Empty:
    // nothing is fetched first or recorded.
    std::string working_set_path;
    BulkShare* bulk_share = nullptr;
    // Records the faults of every VM; outlives the service. nullptr: nobody.
    FaultRecorder* recorder = nullptr;
    // Told, one sentence at a time, who comes, goes, is refused and why, and
    // what became of a VM. By any thread; must not block. May be empty.
    std::function<void(LogSeverity, const std::string&)> log;
  };

  // Serves when it returns. The errors of SnapshotFile::Open, of ReadWorkingSet
  // and of FirecrackerListener::Create; FAILED_PRECONDITION if the working set
  // is of another snapshot. A source that cannot be reached just now is no
  // error, unless a working set is to be compared: the VMs are refused until it
  // can. INVALID_ARGUMENT unless it is either a path or a source with a name.
  static absl::StatusOr<std::unique_ptr<SnapshotService>> Create(
      Options options);

  ~SnapshotService() { Shutdown(); }

  // The VMs that are attached.
  size_t vms() const;
  // VMs that have gone and have not been let go altogether: they count as well
  // where there are vms_max.
  size_t leaving() const;

  // Adds what was counted of all VMs since the beginning. Any thread.
  void AddMetrics(MetricFamilies& families) const;
  // A VM needs this daemon as long as it lives.
  DaemonLoad Load() const;

  // Refuses VMs that come from now on; those that are attached are served. Any
  // thread.
  void StopTaking() { taking_.store(false); }

  // False if a fault loop, or the thread that accepts, has not come round since
  // the last call. By one thread at a time.
  bool ShowsLife();

  // Serves no longer. VMs with missing pages wait from then on at each of them.
  // Idempotent.
  void Shutdown();

 private:
  struct Attached {
    pid_t pid;
    std::unique_ptr<SnapshotVm> vm;
    bool records = false;
  };

  explicit SnapshotService(Options options) : options_(std::move(options)) {}

  // By the listener's thread, like the three below.
  absl::Status Attach(FirecrackerVm vm);
  // RESOURCE_EXHAUSTED if those that are attached and those that are let go,
  // who have their descriptors still, are vms_max.
  absl::Status CheckRoom() const;
  void Detach(uint64_t id);
  void Refuse(const absl::Status& why);
  absl::StatusOr<std::unique_ptr<SnapshotVm>> Serve(FirecrackerVm vm,
                                                    const std::string& name,
                                                    bool records);
  // Null if nobody records, or cannot. `taken` is to be true once the VM is.
  std::shared_ptr<FaultRecords> RecordsOf(
      const std::string& name, const std::vector<SnapshotRegion>& regions,
      std::shared_ptr<const std::atomic<bool>> taken) const;
  // Finds out about the snapshot: a wrong path is told now, and not to the
  // first VM.
  absl::Status Look();
  absl::Status LookAtFile();
  absl::Status LookAtSource();
  // What working_set_path leads to; NOT_FOUND is no error here.
  absl::Status LoadWorkingSet();
  OpenSnapshotPages OpenerOfSnapshot() const;
  std::unique_ptr<SnapshotDialer> NewDialer() const;
  // True if the VM that attaches now is the one whose pages are recorded.
  bool ClaimRecording();
  // The VM of `name` has gone, or did not come: what it left, if anything.
  void EndRecording(const std::string& name, WorkingSet recorded);
  // The undertaker: ends the serving of VMs that have gone, which may wait for
  // a disk, and must not keep others from attaching.
  void Bury();
  void Log(const std::string& sentence) const {
    Log(LogSeverity::kInfo, sentence);
  }
  void Log(LogSeverity severity, const std::string& sentence) const;

  const Options options_;
  // Set by Create. The size is known if there is a working set.
  ByteCount snapshot_bytes_;
  std::string snapshot_name_;
  std::unique_ptr<FirecrackerListener> listener_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::map<uint64_t, Attached> attached_;
  // VMs that have gone and have not been let go altogether.
  size_t leaving_ = 0;
  // The undertaker takes the first out when it is in forgotten_.
  std::deque<std::pair<uint64_t, Attached>> gone_;
  VmTotals forgotten_;
  uint64_t taken_ = 0;    // VMs
  uint64_t refused_ = 0;  // and peers that claimed to be
  bool closing_ = false;
  std::shared_ptr<const WorkingSet> working_set_;  // null: there is none yet
  bool recording_ = false;                         // one VM's pages

  std::atomic<bool> taking_{true};

  // Of the listener's thread.
  int64_t second_began_ns_ = 0;
  int refusals_in_second_ = 0;
  uint64_t refusals_untold_ = 0;

  std::thread undertaker_;
};

}  // namespace postcopy

#endif  // CMD_FAULTD_SNAPSHOT_SERVICE_H_
