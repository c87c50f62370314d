// All of faultd but its flags.
#ifndef CMD_FAULTD_DESTINATION_DAEMON_H_
#define CMD_FAULTD_DESTINATION_DAEMON_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/control/migration_service.h"
#include "cmd/control/migration_table.h"
#include "cmd/daemon/grpc_listener.h"
#include "cmd/daemon/serve.h"
#include "cmd/daemon/vm_events.h"
#include "cmd/daemon/vm_limits.h"
#include "cmd/faultd/destination_side.h"
#include "cmd/faultd/fault_recorder.h"
#include "cmd/log/log.h"
#include "cmd/metrics/metric_families.h"
#include "cmd/security/daemon_security.h"
#include "cmd/vmm_channel/vmm_listener.h"
#include "uffd/bulk_share.h"

namespace postcopy {

// A destination daemon in this process: VMs attach at its socket, an
// orchestrator drives it, it fetches from sources.
class DestinationDaemon {
 public:
  struct Options {
    std::string control_address;
    SecurityOptions security;
    std::string vmm_socket;
    // See VmmListener::Options.
    int inherited_vmm_socket = -1;
    std::vector<unsigned> vmm_uids;
    absl::Duration reconnect_timeout = absl::Seconds(10);
    absl::Duration command_timeout = absl::Seconds(10);
    // VMs attached at a time.
    size_t vms_max = kMaxVms;
    // For the pages that nobody touches; outlives the daemon. nullptr: each VM
    // fetches them as fast as it can.
    BulkShare* bulk_share = nullptr;
    // Records the faults of every VM that migrates here; outlives the daemon.
    // nullptr: nobody does.
    FaultRecorder* recorder = nullptr;
    // Serve channelz at the control plane.
    bool channelz = false;
    // Told what happens; outlives the daemon. May be null.
    Log* log = nullptr;
  };

  // Serves when it returns. The first thing that cannot be had is the error.
  static absl::StatusOr<std::unique_ptr<DestinationDaemon>> Create(
      const Options& options);

  ~DestinationDaemon() { Shutdown(); }

  const std::string& control_address() const { return control_->address(); }
  DaemonSecurity& security() { return *security_; }

  // Adds what the daemon counts. Any thread.
  void AddMetrics(MetricFamilies& families) const;
  // For Serve; see ServeHooks.
  DaemonLoad Load() const;
  void StopTaking();
  bool ShowsLife();

  // Ends. Guests with missing pages wait from then on at each of them, as long
  // as their VMMs keep the userfaultfd. Idempotent.
  void Shutdown();

 private:
  DestinationDaemon(const Options& options,
                    std::unique_ptr<DaemonSecurity> security);

  const std::unique_ptr<DaemonSecurity> security_;
  const BulkShare* const bulk_share_;  // may be null
  VmEvents vm_events_;
  DestinationSides sides_;
  MigrationTable table_;
  MigrationService control_service_;
  std::unique_ptr<VmmListener> vmms_;
  std::unique_ptr<GrpcListener> control_;
};

}  // namespace postcopy

#endif  // CMD_FAULTD_DESTINATION_DAEMON_H_
