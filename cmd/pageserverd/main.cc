// pageserverd: the source daemon. Reads guest RAM, runs precopy, hands over,
// serves missing pages.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/time/time.h"
#include "cmd/daemon/daemon.h"
#include "cmd/daemon/grpc_listener.h"
#include "cmd/daemon/vm_limits.h"
#include "cmd/pageserverd/source_daemon.h"

ABSL_FLAG(std::string, control_address, "127.0.0.1:7400",
          "host:port of the control plane; port 0 lets the kernel choose");
ABSL_FLAG(std::string, data_address, "127.0.0.1:7401",
          "host:port of the data plane, where destinations fetch pages");
ABSL_FLAG(std::string, vmm_socket, "/run/postcopy/pageserverd.sock",
          "Unix socket where VMMs attach");
ABSL_FLAG(std::string, vmm_uids, "",
          "user ids that may attach, separated by commas; empty: root and the "
          "user this daemon runs as");
ABSL_FLAG(absl::Duration, reconnect_timeout, absl::Seconds(10),
          "how long a lost destination may take to come back during precopy");
ABSL_FLAG(uint32_t, vms_max, postcopy::kMaxVms,
          "VMs attached at a time; fewer if LimitNOFILE does not suffice");
ABSL_FLAG(int, ready_fd, -1,
          "descriptor to which one line of JSON with the addresses is written "
          "when the daemon is ready");

int main(int argc, char** argv) {
  using namespace postcopy;  // NOLINT: main is outside it
  absl::SetProgramUsageMessage("the source daemon of live migration");
  absl::ParseCommandLine(argc, argv);
  ChooseGrpcPolling();
  BlockEndSignals();

  const auto uids = ParseUids(absl::GetFlag(FLAGS_vmm_uids));
  if (!uids.ok()) return FailWith(uids.status(), 2);
  const auto limit = FitVms(absl::GetFlag(FLAGS_vms_max), kDescriptorsPerVm,
                            RaiseDescriptorLimit());
  if (!limit.ok()) return FailWith(limit.status(), 1);
  if (!limit->note.empty()) {
    std::fprintf(stderr, "pageserverd: %s\n", limit->note.c_str());
  }
  SourceDaemon::Options options{
      .control_address = absl::GetFlag(FLAGS_control_address),
      .data_address = absl::GetFlag(FLAGS_data_address),
      .vmm_socket = absl::GetFlag(FLAGS_vmm_socket),
      .vmm_uids = *uids,
      .reconnect_timeout = absl::GetFlag(FLAGS_reconnect_timeout),
      .vms_max = limit->vms_max};
  auto daemon = SourceDaemon::Create(options);
  if (!daemon.ok()) return FailWith(daemon.status(), 1);
  const absl::Status ready =
      TellReady(absl::GetFlag(FLAGS_ready_fd),
                {{"control_address", (*daemon)->control_address()},
                 {"data_address", (*daemon)->data_address()}});
  if (!ready.ok()) return FailWith(ready, 1);
  std::fprintf(stderr, "pageserverd: control plane %s, data plane %s\n",
               (*daemon)->control_address().c_str(),
               (*daemon)->data_address().c_str());
  WaitForEnd();
  (*daemon)->Shutdown();
  return 0;
}
