#include "cmd/faultd/faultd_flags.h"

#include <cstdint>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "cmd/daemon/daemon.h"
#include "cmd/daemon/observation_flags.h"
#include "cmd/daemon/vm_limits.h"
#include "cmd/security/security_flags.h"
#include "uffd/bulk_share.h"
#include "uffd/snapshot_file.h"

ABSL_FLAG(
    std::string, control_address, "127.0.0.1:7410",
    "host:port of the control plane, where port 0 lets the kernel choose; "
    "or unix:/path");
ABSL_FLAG(std::string, vmm_socket, "/run/postcopy/faultd.sock",
          "Unix socket where VMMs attach; not used where systemd passes one");
ABSL_FLAG(std::string, vmm_uids, "",
          "user ids that may attach, separated by commas; empty: root and the "
          "user this daemon runs as");
ABSL_FLAG(absl::Duration, reconnect_timeout, absl::Seconds(10),
          "how long a lost source may take to come back during precopy; after "
          "the switch-over it is looked for without end");
ABSL_FLAG(std::string, snapshot, "",
          "file of guest memory from which Firecracker VMs are restored that "
          "hand over their page faults at --firecracker_socket; empty: none");
ABSL_FLAG(std::string, snapshot_source, "",
          "instead of --snapshot: host:port of the data plane of a pageserverd "
          "that serves the file (--serve_snapshot); empty: none");
ABSL_FLAG(std::string, snapshot_name, "",
          "what that pageserverd calls the file");
ABSL_FLAG(std::string, firecracker_socket, "/run/postcopy/firecracker.sock",
          "Unix socket where these VMs connect: the backend_path of "
          "Firecracker's mem_backend of type Uffd");
ABSL_FLAG(bool, snapshot_prefetch, false,
          "bring also pages of the snapshot that no VM touches");
ABSL_FLAG(uint64_t, snapshot_prefetch_bytes_per_second, 0,
          "most that is brought so for each VM; 0: no limit");
ABSL_FLAG(std::string, snapshot_working_set, "",
          "file with the pages of the snapshot that a VM wants first; if there "
          "is none, what the first VM touches becomes one when that has gone; "
          "empty: none");
ABSL_FLAG(bool, snapshot_direct_io, false,
          "read the snapshot past the page cache, where its file system can; "
          "costs what VMs of one snapshot would share");
ABSL_FLAG(std::string, trace_dir, "",
          "directory where the page faults of each VM are recorded, in a file "
          "of its own that faultreplay reads; empty: they are not");
ABSL_FLAG(uint32_t, trace_events_max, postcopy::kDefaultTraceEvents,
          "faults that one trace takes, some 25 bytes each; 1 to 4194304");
ABSL_FLAG(uint32_t, vms_max, postcopy::kMaxVms,
          "VMs attached at a time, to be migrated and of the snapshot each; "
          "fewer if LimitNOFILE does not suffice");
ABSL_FLAG(uint32_t, bulk_requests, postcopy::kDefaultBulkRequests,
          "requests of 256 KiB, or of one huge page, that all VMs have in "
          "flight together for pages that nobody has touched; 2 to 64");
ABSL_FLAG(absl::Duration, drain_timeout, absl::InfiniteDuration(),
          "how long SIGTERM waits for guests that still miss pages; inf: as "
          "long as it takes; a second SIGTERM ends the wait");
ABSL_FLAG(std::string, metrics_address, "127.0.0.1:7412",
          "host:port where Prometheus scrapes, over plain HTTP and without "
          "authentication; port 0 lets the kernel choose; empty: none");
ABSL_FLAG(int, ready_fd, -1,
          "descriptor to which one line of JSON with the address is written "
          "when the daemon is ready");

namespace postcopy {
namespace {

bool ServesSnapshots() {
  return !absl::GetFlag(FLAGS_snapshot).empty() ||
         !absl::GetFlag(FLAGS_snapshot_source).empty() ||
         !absl::GetFlag(FLAGS_snapshot_name).empty();
}

absl::Status CheckSnapshotFlags() {
  const bool remote = !absl::GetFlag(FLAGS_snapshot_source).empty();
  if (!ServesSnapshots() ||
      (remote == absl::GetFlag(FLAGS_snapshot).empty() &&
       remote != absl::GetFlag(FLAGS_snapshot_name).empty())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "give either --snapshot, a file of this host, or both --snapshot_source "
      "and --snapshot_name, that of another");
}

absl::Status CheckSecurity() {
  const auto security = SecurityOptionsFromFlags(nullptr);
  if (!security.ok()) return security.status();
  return DaemonSecurity::CheckDestination(*security,
                                          absl::GetFlag(FLAGS_control_address));
}

absl::StatusOr<size_t> VmsMax(Log* log) {
  const bool snapshots = ServesSnapshots();
  const auto limit =
      FitVms(absl::GetFlag(FLAGS_vms_max),
             kDescriptorsPerVm + (snapshots ? kDescriptorsPerSnapshotVm : 0),
             RaiseDescriptorLimit());
  if (!limit.ok()) return limit.status();
  if (!limit->note.empty()) {
    WriteTo(log, LogSeverity::kWarning, limit->note);
  }
  return limit->vms_max;
}

SnapshotService::Options SnapshotOptions(const std::vector<unsigned>& uids,
                                         size_t vms_max, Log* log) {
  const bool direct = absl::GetFlag(FLAGS_snapshot_direct_io);
  return {
      .socket_path = absl::GetFlag(FLAGS_firecracker_socket),
      .allowed_uids = {uids.begin(), uids.end()},
      .vms_max = vms_max,
      .snapshot_path = absl::GetFlag(FLAGS_snapshot),
      .access = direct ? SnapshotAccess::kDirect : SnapshotAccess::kBuffered,
      .source_address = absl::GetFlag(FLAGS_snapshot_source),
      .source_name = absl::GetFlag(FLAGS_snapshot_name),
      .prefetch = absl::GetFlag(FLAGS_snapshot_prefetch),
      .prefetch_bytes_per_second =
          absl::GetFlag(FLAGS_snapshot_prefetch_bytes_per_second),
      .working_set_path = absl::GetFlag(FLAGS_snapshot_working_set),
      .log = [log](LogSeverity severity, const std::string& sentence) {
        WriteTo(log, severity, sentence);
      }};
}

}  // namespace

std::vector<FlagCheck> FaultdChecks() {
  std::vector<FlagCheck> checks = SecurityChecks();
  checks.insert(
      checks.end(),
      {{"vmm_uids",
        [] { return ParseUids(absl::GetFlag(FLAGS_vmm_uids)).status(); }},
       LogLevelCheck(),
       {"metrics_address",
        [] { return CheckMetricsFlag(absl::GetFlag(FLAGS_metrics_address)); }},
       {"vms_max", [] { return CheckVmsMax(absl::GetFlag(FLAGS_vms_max)); }},
       {"bulk_requests",
        [] { return CheckBulkRequests(absl::GetFlag(FLAGS_bulk_requests)); }},
       {"trace_events_max",
        [] { return CheckTraceEvents(absl::GetFlag(FLAGS_trace_events_max)); }},
       {"reconnect_timeout",
        [] { return CheckTimeout(absl::GetFlag(FLAGS_reconnect_timeout)); }},
       {"drain_timeout",
        [] { return CheckDrainTimeout(absl::GetFlag(FLAGS_drain_timeout)); }},
       {"", CheckSnapshotFlags},
       {"", CheckSecurity}});
  return checks;
}

absl::StatusOr<FaultdOptions> FaultdOptionsFromFlags(Log* log) {
  const auto uids = ParseUids(absl::GetFlag(FLAGS_vmm_uids));
  if (!uids.ok()) return uids.status();
  const auto vms_max = VmsMax(log);
  if (!vms_max.ok()) return vms_max.status();
  auto security = SecurityOptionsFromFlags(log);
  if (!security.ok()) return security.status();
  FaultdOptions options = {
      .destination = {.control_address = absl::GetFlag(FLAGS_control_address),
                      .security = *std::move(security),
                      .vmm_socket = absl::GetFlag(FLAGS_vmm_socket),
                      .vmm_uids = *uids,
                      .reconnect_timeout =
                          absl::GetFlag(FLAGS_reconnect_timeout),
                      .vms_max = *vms_max,
                      .channelz = ChannelzFlag(),
                      .log = log},
      .bulk_requests = absl::GetFlag(FLAGS_bulk_requests)};
  const std::string trace_dir = absl::GetFlag(FLAGS_trace_dir);
  if (!trace_dir.empty()) {
    options.traces = {.directory = trace_dir,
                      .events_max = absl::GetFlag(FLAGS_trace_events_max),
                      .log = log};
  }
  if (ServesSnapshots()) {
    options.snapshot = SnapshotOptions(*uids, *vms_max, log);
  }
  return options;
}

absl::Duration FaultdDrainTimeout() {
  return absl::GetFlag(FLAGS_drain_timeout);
}

std::string FaultdMetricsAddress() {
  return absl::GetFlag(FLAGS_metrics_address);
}

int FaultdReadyFd() { return absl::GetFlag(FLAGS_ready_fd); }

}  // namespace postcopy
