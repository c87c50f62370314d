// The VMM around a machine: attaches it to a daemon and does what that asks.
#ifndef CMD_DEMOVM_DEMO_VMM_H_
#define CMD_DEMOVM_DEMO_VMM_H_

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/demovm/guest_checker.h"
#include "cmd/demovm/machine.h"
#include "cmd/vmm_channel/vmm_client.h"
#include "dirtytrack/dirty_log.h"
#include "dirtytrack/unique_fd.h"
#include "dirtytrack/write_tracking.h"

namespace postcopy::demovm {

// What became of the guest.
struct FinalReport {
  GuestProgress progress;
  // Empty if there was no guest here to check: none has come, or it has been
  // handed over.
  std::optional<GuestVerdict> verdict;
};

// A machine attached to one daemon. The machine belongs to whichever thread
// holds the lock: that of the daemon's commands, or the owner's in Finish.
class DemoVmm : private VmmHandler {
 public:
  // How a source lets its daemon know which pages the guest writes.
  enum class DirtyTracking {
    kLog,          // a shared log, marked with what the machine tells
    kPagemapScan,  // the kernel tells
  };

  struct Options {
    std::string name;
    std::string socket_path;
    VmmRole role = VmmRole::kSource;
    DirtyTracking dirty_tracking = DirtyTracking::kLog;
  };

  // Attaches `machine`, whose guest must run already at a source and must not
  // have been started at a destination; answers the daemon from then on. The
  // error is that of VmmClient::Attach, or says what this process lacks.
  static absl::StatusOr<std::unique_ptr<DemoVmm>> Attach(
      std::unique_ptr<Machine> machine, const Options& options);

  ~DemoVmm() override;

  // Stops the guest, if it is here, and checks every page; then detaches. While
  // pages are missing this takes as long as fetching them. To be called once.
  absl::StatusOr<FinalReport> Finish();

 private:
  DemoVmm(std::unique_ptr<Machine> machine, VmmRole role)
      : role_(role), machine_(std::move(machine)) {}

  absl::Status AttachSource(GuestToAttach& guest, DirtyTracking tracking);
  absl::Status AttachDirtyLog(GuestToAttach& guest);
  absl::Status AttachPagemap(GuestToAttach& guest);
  absl::Status AttachDestination(GuestToAttach& guest);
  absl::Status Collect();
  // The daemon's connection has ended.
  void GoOnAlone();

  absl::Status StartDirtyLogging() override;
  absl::Status SyncDirtyLog() override;
  absl::Status StopDirtyLogging() override;
  absl::Status PauseGuest() override;
  absl::StatusOr<std::string> SaveDeviceState() override;
  absl::Status LoadDeviceState(absl::string_view state) override;
  absl::Status ResumeGuest() override;
  void MigrationEnded(bool completed) override;

  enum class Guest { kAbsent, kRunning, kPaused, kHandedOver };

  const VmmRole role_;
  std::mutex mutex_;
  // Guarded by mutex_.
  const std::unique_ptr<Machine> machine_;
  Guest guest_ = Guest::kAbsent;
  bool logging_ = false;
  bool state_saved_ = false;  // and the guest not resumed since
  bool finishing_ = false;

  // Source with a log.
  std::optional<DirtyLogSet> dirty_log_;
  std::optional<DirtyLogWriter> dirty_writer_;
  // Source without.
  std::optional<WriteTracking> write_tracking_;
  UniqueFd pagemap_;
  // Destination. Kept to the end: with the last descriptor closed, missing
  // pages would read as zeros.
  UniqueFd userfaultfd_;

  std::unique_ptr<VmmClient> client_;
  std::thread serving_;
};

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_DEMO_VMM_H_
