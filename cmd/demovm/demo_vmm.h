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
#include "absl/strings/string_view.h"
#include "cmd/demovm/guest_checker.h"
#include "cmd/demovm/machine.h"
#include "cmd/vmm_channel/attachment.h"
#include "cmd/vmm_library/postcopy_vmm.h"

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
class DemoVmm {
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
    // Destination: ask for minor faults, so that stale pages need not be
    // punched out of the guest's memory at the switch-over.
    bool minor_faults = false;
  };

  // Attaches `machine`, whose guest must run already at a source and must not
  // have been started at a destination; answers the daemon from then on. The
  // error is that of postcopy_vmm_attach.
  static absl::StatusOr<std::unique_ptr<DemoVmm>> Attach(
      std::unique_ptr<Machine> machine, const Options& options);

  ~DemoVmm();
  DemoVmm(const DemoVmm&) = delete;
  DemoVmm& operator=(const DemoVmm&) = delete;

  // Stops the guest, if it is here, and checks every page; then detaches. While
  // pages are missing this takes as long as fetching them. To be called once.
  absl::StatusOr<FinalReport> Finish();

 private:
  // Gives the guest up before the handle: who waits for a page of it goes on.
  struct FreeHandle {
    void operator()(postcopy_vmm* handle) const;
  };
  struct FreeMarker {
    void operator()(postcopy_vmm_marker* marker) const {
      postcopy_vmm_marker_free(marker);
    }
  };

  DemoVmm(std::unique_ptr<Machine> machine, const Options& options)
      : role_(options.role),
        tracking_(options.dirty_tracking),
        machine_(std::move(machine)) {}

  absl::Status Connect(const Options& options);
  absl::Status Describe();
  absl::Status MakeMarker();
  void Serve();
  absl::Status Collect();
  // The daemon's connection has ended.
  void GoOnAlone();
  postcopy_vmm_callbacks Callbacks();

  // What the daemon asks; see postcopy_vmm_callbacks.
  absl::Status StartDirtyLogging();
  absl::Status SyncDirtyLog();
  absl::Status StopDirtyLogging();
  absl::Status PauseGuest();
  absl::Status SaveDeviceState();
  absl::Status LoadDeviceState(absl::string_view state);
  absl::Status ResumeGuest();
  void MigrationEnded(bool completed);

  // Calls one of these for the library.
  template <absl::Status (DemoVmm::*kMethod)()>
  static int Answer(void* context, postcopy_vmm* handle);
  // `status` as the library wants it from a callback.
  static int Tell(postcopy_vmm* handle, const absl::Status& status);
  // The error that a call with the handle has returned.
  absl::Status Error(int code) const;

  enum class Guest { kAbsent, kRunning, kPaused, kHandedOver };

  const VmmRole role_;
  const DirtyTracking tracking_;
  std::mutex mutex_;
  // Guarded by mutex_.
  const std::unique_ptr<Machine> machine_;
  Guest guest_ = Guest::kAbsent;
  bool logging_ = false;
  bool finishing_ = false;

  std::unique_ptr<postcopy_vmm, FreeHandle> handle_;
  // Source with a log.
  std::unique_ptr<postcopy_vmm_marker, FreeMarker> marker_;
  std::thread serving_;
};

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_DEMO_VMM_H_
