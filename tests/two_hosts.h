// Two hosts in one process: a source daemon, a destination daemon, a network
// that can fail between them, and a guest that checks its own memory.
#ifndef TESTS_TWO_HOSTS_H_
#define TESTS_TWO_HOSTS_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/daemon/vm_limits.h"
#include "cmd/demovm/demo_vmm.h"
#include "cmd/demovm/guest_ram.h"
#include "cmd/faultd/destination_daemon.h"
#include "cmd/faultd/fault_recorder.h"
#include "cmd/log/log.h"
#include "cmd/pageserverd/source_daemon.h"
#include "cmd/security/client_security.h"
#include "cmd/security/daemon_security.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/types.h"
#include "postcopy/v1/migration.grpc.pb.h"
#include "tests/fault_proxy.h"
#include "uffd/bulk_share.h"

namespace postcopy {

// Why this machine cannot run a destination; empty if it can.
std::string WhyNoUserfaultfd();

class TwoHosts {
 public:
  struct Options {
    ByteCount ram{32 << 20};
    // How long a lost peer may take before the switch-over.
    absl::Duration reconnect_timeout = absl::Seconds(10);
    uint64_t write_rate_mib_per_s = 100;
    int fill_percent = 80;
    // What the guest's RAM is made of at either side.
    demovm::RamKind source_memory = demovm::RamKind::kShared;
    demovm::RamKind destination_memory = demovm::RamKind::kShared;
    demovm::DemoVmm::DirtyTracking dirty_tracking =
        demovm::DemoVmm::DirtyTracking::kLog;
    // Of the VMM at the destination.
    bool minor_faults = false;
    // Of each daemon.
    size_t vms_max = kMaxVms;
    // How both daemons are protected.
    SecurityOptions security = {.insecure_control = true,
                                .insecure_data = true};
    // How the test drives them.
    ClientSecurity client = ClientSecurity::Plaintext();
    // What each daemon says; may be null. Outlives the object.
    Log* source_log = nullptr;
    Log* destination_log = nullptr;
    // Of the destination's faults; may be null. Outlives the object.
    FaultRecorder* recorder = nullptr;
  };

  // Both daemons run, and nothing is attached to them.
  static absl::StatusOr<std::unique_ptr<TwoHosts>> Create(Options options);
  ~TwoHosts();

  // Attaches a guest named `name` that runs; empty RAM for it.
  absl::Status AttachSource(const std::string& name);
  absl::Status AttachDestination(const std::string& name, ByteCount ram);
  // Both, with the RAM of the options.
  absl::Status AttachBoth(const std::string& name);

  // Create requests that work; change what the test is about.
  v1::CreateMigrationRequest SourceRequest(const std::string& name) const;
  v1::CreateMigrationRequest DestinationRequest(const std::string& name) const;
  // Creates on both. The migration is called as the VM.
  absl::Status CreateBoth(const std::string& name, v1::MigrationPolicy policy,
                          uint64_t bulk_limit = 0);

  absl::StatusOr<v1::Migration> CreateAtSource(
      const v1::CreateMigrationRequest& request);
  absl::StatusOr<v1::Migration> CreateAtDestination(
      const v1::CreateMigrationRequest& request);
  v1::Migration AtSource(const std::string& id);
  v1::Migration AtDestination(const std::string& id);
  absl::Status SwitchOver(const std::string& id);
  absl::Status CancelAtSource(const std::string& id);
  absl::Status CancelAtDestination(const std::string& id);

  // Watches until `done` says so; DEADLINE_EXCEEDED, with the last look, after
  // a minute.
  using Done = std::function<bool(const v1::Migration&)>;
  absl::Status AwaitSource(const std::string& id, const Done& done);
  absl::Status AwaitDestination(const std::string& id, const Done& done);

  // Stops the guest wherever it is and checks it.
  absl::StatusOr<demovm::FinalReport> FinishSource();
  absl::StatusOr<demovm::FinalReport> FinishDestination();

  void EndSourceDaemon();
  void EndDestinationDaemon();
  // A fresh destination daemon in the place of one that has ended.
  absl::Status StartDestinationDaemon();
  // The VMM process dies.
  void KillSourceVmm() { source_vmm_.reset(); }
  void KillDestinationVmm() { destination_vmm_.reset(); }

  // Read certificates now, without waiting until they look.
  absl::Status ReloadSource() { return source_->security().Reload(); }
  absl::Status ReloadDestination() { return destination_->security().Reload(); }

  const SourceDaemon& source() const { return *source_; }
  const DestinationDaemon& destination() const { return *destination_; }
  FaultProxy& network() { return *network_; }
  // Of the destination daemon. Time stands still in it: what is not given back
  // does not expire.
  BulkShare& bulk_share() { return bulk_share_; }
  const std::string& control_address() const {
    return source_->control_address();
  }
  const std::string& destination_control_address() const {
    return destination_->control_address();
  }
  // Of the source, around the network.
  const std::string& data_address() const { return source_->data_address(); }
  // Of this object alone, for sockets; removed with it.
  const std::string& directory() const { return directory_; }

 private:
  using Stub = v1::MigrationService::Stub;

  explicit TwoHosts(Options options);
  absl::StatusOr<std::unique_ptr<demovm::DemoVmm>> Attach(
      const std::string& name, VmmRole role, ByteCount ram);

  const Options options_;
  std::string directory_;
  std::unique_ptr<SourceDaemon> source_;
  std::unique_ptr<FaultProxy> network_;
  SimulatedClock share_clock_;
  BulkShare bulk_share_{kDefaultBulkRequests, &share_clock_};
  std::unique_ptr<DestinationDaemon> destination_;
  std::unique_ptr<Stub> source_stub_;
  std::unique_ptr<Stub> destination_stub_;
  std::unique_ptr<demovm::DemoVmm> source_vmm_;
  std::unique_ptr<demovm::DemoVmm> destination_vmm_;
};

// True if its state will not change any more.
bool MigrationHasEnded(const v1::Migration& migration);

}  // namespace postcopy

#endif  // TESTS_TWO_HOSTS_H_
