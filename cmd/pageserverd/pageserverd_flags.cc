#include "cmd/pageserverd/pageserverd_flags.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "cmd/daemon/daemon.h"
#include "cmd/daemon/observation_flags.h"
#include "cmd/daemon/vm_limits.h"
#include "cmd/pageserverd/named_file.h"
#include "cmd/security/security_flags.h"

ABSL_FLAG(
    std::string, control_address, "127.0.0.1:7400",
    "host:port of the control plane, where port 0 lets the kernel choose; "
    "or unix:/path");
ABSL_FLAG(std::string, data_address, "127.0.0.1:7401",
          "host:port of the data plane, where destinations fetch pages");
ABSL_FLAG(std::string, vmm_socket, "/run/postcopy/pageserverd.sock",
          "Unix socket where VMMs attach; not used where systemd passes one");
ABSL_FLAG(std::string, vmm_uids, "",
          "user ids that may attach, separated by commas; empty: root and the "
          "user this daemon runs as");
ABSL_FLAG(absl::Duration, reconnect_timeout, absl::Seconds(10),
          "how long a lost destination may take to come back during precopy");
ABSL_FLAG(uint32_t, vms_max, postcopy::kMaxVms,
          "VMs attached at a time; fewer if LimitNOFILE does not suffice");
ABSL_FLAG(std::vector<std::string>, serve_snapshot, {},
          "NAME=FILE,...: files of guest memory from which VMs of other hosts "
          "are restored (faultd's --snapshot_source); must not change");
ABSL_FLAG(absl::Duration, drain_timeout, absl::InfiniteDuration(),
          "how long SIGTERM waits for destinations that still need pages; inf: "
          "as long as it takes; a second SIGTERM ends the wait");
ABSL_FLAG(std::string, metrics_address, "127.0.0.1:7402",
          "host:port where Prometheus scrapes, over plain HTTP and without "
          "authentication; port 0 lets the kernel choose; empty: none");
ABSL_FLAG(int, ready_fd, -1,
          "descriptor to which one line of JSON with the addresses is written "
          "when the daemon is ready");

namespace postcopy {
namespace {

absl::Status CheckSecurity() {
  const auto security = SecurityOptionsFromFlags(nullptr);
  if (!security.ok()) return security.status();
  return DaemonSecurity::CheckSource(*security,
                                     absl::GetFlag(FLAGS_control_address),
                                     absl::GetFlag(FLAGS_data_address));
}

}  // namespace

std::vector<FlagCheck> PageserverdChecks() {
  std::vector<FlagCheck> checks = SecurityChecks();
  checks.insert(
      checks.end(),
      {{"vmm_uids",
        [] { return ParseUids(absl::GetFlag(FLAGS_vmm_uids)).status(); }},
       LogLevelCheck(),
       {"metrics_address",
        [] { return CheckMetricsFlag(absl::GetFlag(FLAGS_metrics_address)); }},
       {"vms_max", [] { return CheckVmsMax(absl::GetFlag(FLAGS_vms_max)); }},
       {"serve_snapshot",
        [] {
          return ParseNamedFiles(absl::GetFlag(FLAGS_serve_snapshot)).status();
        }},
       {"reconnect_timeout",
        [] { return CheckTimeout(absl::GetFlag(FLAGS_reconnect_timeout)); }},
       {"drain_timeout",
        [] { return CheckDrainTimeout(absl::GetFlag(FLAGS_drain_timeout)); }},
       {"", CheckSecurity}});
  return checks;
}

absl::StatusOr<SourceDaemon::Options> PageserverdOptions(Log* log) {
  const auto uids = ParseUids(absl::GetFlag(FLAGS_vmm_uids));
  if (!uids.ok()) return uids.status();
  auto snapshots = ParseNamedFiles(absl::GetFlag(FLAGS_serve_snapshot));
  if (!snapshots.ok()) return snapshots.status();
  const auto limit = FitVms(absl::GetFlag(FLAGS_vms_max), kDescriptorsPerVm,
                            RaiseDescriptorLimit());
  if (!limit.ok()) return limit.status();
  if (!limit->note.empty()) {
    WriteTo(log, LogSeverity::kWarning, limit->note);
  }
  auto security = SecurityOptionsFromFlags(log);
  if (!security.ok()) return security.status();
  return SourceDaemon::Options{
      .control_address = absl::GetFlag(FLAGS_control_address),
      .data_address = absl::GetFlag(FLAGS_data_address),
      .security = *std::move(security),
      .vmm_socket = absl::GetFlag(FLAGS_vmm_socket),
      .vmm_uids = *uids,
      .reconnect_timeout = absl::GetFlag(FLAGS_reconnect_timeout),
      .vms_max = limit->vms_max,
      .snapshots = *std::move(snapshots),
      .channelz = ChannelzFlag(),
      .log = log};
}

absl::Duration PageserverdDrainTimeout() {
  return absl::GetFlag(FLAGS_drain_timeout);
}

std::string PageserverdMetricsAddress() {
  return absl::GetFlag(FLAGS_metrics_address);
}

int PageserverdReadyFd() { return absl::GetFlag(FLAGS_ready_fd); }

}  // namespace postcopy
