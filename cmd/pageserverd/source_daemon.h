// All of pageserverd but its flags.
#ifndef CMD_PAGESERVERD_SOURCE_DAEMON_H_
#define CMD_PAGESERVERD_SOURCE_DAEMON_H_

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
#include "cmd/daemon/vm_limits.h"
#include "cmd/log/log.h"
#include "cmd/metrics/metric_families.h"
#include "cmd/pageserverd/named_file.h"
#include "cmd/pageserverd/source_events.h"
#include "cmd/pageserverd/source_side.h"
#include "cmd/security/daemon_security.h"
#include "cmd/vmm_channel/vmm_listener.h"
#include "pageserver/data_plane_service.h"
#include "pageserver/served_snapshot.h"
#include "pageserver/session_directory.h"
#include "pageserver/snapshot_sessions.h"

namespace postcopy {

// A source daemon in this process: VMs attach at its socket, an orchestrator
// drives it, destinations fetch from it.
class SourceDaemon {
 public:
  struct Options {
    std::string control_address;
    std::string data_address;
    SecurityOptions security;
    std::string vmm_socket;
    // See VmmListener::Options.
    int inherited_vmm_socket = -1;
    std::vector<unsigned> vmm_uids;
    absl::Duration reconnect_timeout = absl::Seconds(10);
    absl::Duration command_timeout = absl::Seconds(10);
    // VMs attached at a time.
    size_t vms_max = kMaxVms;
    // Names and paths of files that VMs are restored from on other hosts.
    std::vector<NamedFile> snapshots;
    // Serve channelz at the control plane.
    bool channelz = false;
    // Told what happens; outlives the daemon. May be null.
    Log* log = nullptr;
  };

  // Serves when it returns. The first thing that cannot be had is the error.
  static absl::StatusOr<std::unique_ptr<SourceDaemon>> Create(
      const Options& options);

  ~SourceDaemon() { Shutdown(); }

  const std::string& control_address() const { return control_->address(); }
  const std::string& data_address() const { return data_->address(); }
  DaemonSecurity& security() { return *security_; }

  // VMs that are being restored from the snapshots.
  size_t snapshot_sessions() const { return snapshots_.sessions(); }

  // Adds what the daemon counts. Any thread.
  void AddMetrics(MetricFamilies& families) const;
  // For Serve; see ServeHooks.
  DaemonLoad Load() const;
  void StopTaking();
  bool ShowsLife();

  // Cancels what can be cancelled, then ends. The destination of a migration
  // after its commit goes on looking for this daemon. Idempotent.
  void Shutdown();

 private:
  SourceDaemon(const Options& options,
               std::unique_ptr<DaemonSecurity> security);

  const std::unique_ptr<DaemonSecurity> security_;
  // Before what tells it.
  SourceEvents events_;
  SessionDirectory directory_;
  SnapshotSessions snapshots_;
  SourceSides sides_;
  MigrationTable table_;
  MigrationService control_service_;
  DataPlaneService data_service_;
  std::unique_ptr<VmmListener> vmms_;
  std::unique_ptr<GrpcListener> control_;
  std::unique_ptr<GrpcListener> data_;
};

}  // namespace postcopy

#endif  // CMD_PAGESERVERD_SOURCE_DAEMON_H_
