// faultd: the destination daemon. Receives precopied pages, resolves missing
// page faults by fetching them, pulls the rest in the background. Also the
// page-fault handler of VMs that Firecracker restores from a snapshot.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/daemon/daemon.h"
#include "cmd/daemon/grpc_listener.h"
#include "cmd/daemon/vm_limits.h"
#include "cmd/faultd/destination_daemon.h"
#include "cmd/faultd/snapshot_service.h"
#include "dirtytrack/clock.h"
#include "uffd/bulk_share.h"
#include "uffd/snapshot_file.h"

ABSL_FLAG(std::string, control_address, "127.0.0.1:7410",
          "host:port of the control plane; port 0 lets the kernel choose");
ABSL_FLAG(std::string, vmm_socket, "/run/postcopy/faultd.sock",
          "Unix socket where VMMs attach");
ABSL_FLAG(std::string, vmm_uids, "",
          "user ids that may attach, separated by commas; empty: root and the "
          "user this daemon runs as");
ABSL_FLAG(absl::Duration, reconnect_timeout, absl::Seconds(10),
          "how long a lost source may take to come back during precopy; after "
          "the switch-over it is looked for without end");
ABSL_FLAG(std::string, snapshot, "",
          "file of guest memory from which Firecracker VMs are restored that "
          "hand over their page faults at --firecracker_socket; empty: none");
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
ABSL_FLAG(uint32_t, vms_max, postcopy::kMaxVms,
          "VMs attached at a time, to be migrated and of the snapshot each; "
          "fewer if LimitNOFILE does not suffice");
ABSL_FLAG(uint32_t, bulk_requests, postcopy::kDefaultBulkRequests,
          "requests of 256 KiB, or of one huge page, that all VMs have in "
          "flight together for pages that nobody has touched; 2 to 64");
ABSL_FLAG(int, ready_fd, -1,
          "descriptor to which one line of JSON with the address is written "
          "when the daemon is ready");

namespace {

postcopy::SnapshotService::Options SnapshotOptions(
    const std::vector<unsigned>& uids, size_t vms_max,
    postcopy::BulkShare* share) {
  const bool direct = absl::GetFlag(FLAGS_snapshot_direct_io);
  return {.socket_path = absl::GetFlag(FLAGS_firecracker_socket),
          .allowed_uids = {uids.begin(), uids.end()},
          .vms_max = vms_max,
          .snapshot_path = absl::GetFlag(FLAGS_snapshot),
          .access = direct ? postcopy::SnapshotAccess::kDirect
                           : postcopy::SnapshotAccess::kBuffered,
          .prefetch = absl::GetFlag(FLAGS_snapshot_prefetch),
          .prefetch_bytes_per_second =
              absl::GetFlag(FLAGS_snapshot_prefetch_bytes_per_second),
          .working_set_path = absl::GetFlag(FLAGS_snapshot_working_set),
          .bulk_share = share,
          .log = [](const std::string& sentence) {
            std::fprintf(stderr, "faultd: %s\n", sentence.c_str());
          }};
}

absl::StatusOr<size_t> VmsMax() {
  using namespace postcopy;  // NOLINT: as in main
  const bool snapshots = !absl::GetFlag(FLAGS_snapshot).empty();
  const auto limit =
      FitVms(absl::GetFlag(FLAGS_vms_max),
             kDescriptorsPerVm + (snapshots ? kDescriptorsPerSnapshotVm : 0),
             RaiseDescriptorLimit());
  if (!limit.ok()) return limit.status();
  if (!limit->note.empty()) {
    std::fprintf(stderr, "faultd: %s\n", limit->note.c_str());
  }
  return limit->vms_max;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace postcopy;  // NOLINT: main is outside it
  absl::SetProgramUsageMessage("the destination daemon of live migration");
  absl::ParseCommandLine(argc, argv);
  ChooseGrpcPolling();
  BlockEndSignals();

  const auto uids = ParseUids(absl::GetFlag(FLAGS_vmm_uids));
  if (!uids.ok()) return FailWith(uids.status(), 2);
  const auto vms_max = VmsMax();
  if (!vms_max.ok()) return FailWith(vms_max.status(), 1);
  const size_t bulk_requests = absl::GetFlag(FLAGS_bulk_requests);
  const absl::Status bulk = CheckBulkRequests(bulk_requests);
  if (!bulk.ok()) return FailWith(bulk, 1);
  BulkShare share(bulk_requests, Clock::Monotonic());
  DestinationDaemon::Options options{
      .control_address = absl::GetFlag(FLAGS_control_address),
      .vmm_socket = absl::GetFlag(FLAGS_vmm_socket),
      .vmm_uids = *uids,
      .reconnect_timeout = absl::GetFlag(FLAGS_reconnect_timeout),
      .vms_max = *vms_max,
      .bulk_share = &share};
  auto daemon = DestinationDaemon::Create(options);
  if (!daemon.ok()) return FailWith(daemon.status(), 1);
  std::unique_ptr<SnapshotService> snapshots;
  if (!absl::GetFlag(FLAGS_snapshot).empty()) {
    auto created =
        SnapshotService::Create(SnapshotOptions(*uids, *vms_max, &share));
    if (!created.ok()) return FailWith(created.status(), 1);
    snapshots = *std::move(created);
  }
  const absl::Status ready =
      TellReady(absl::GetFlag(FLAGS_ready_fd),
                {{"control_address", (*daemon)->control_address()}});
  if (!ready.ok()) return FailWith(ready, 1);
  std::fprintf(stderr, "faultd: control plane %s\n",
               (*daemon)->control_address().c_str());
  WaitForEnd();
  if (snapshots != nullptr) snapshots->Shutdown();
  (*daemon)->Shutdown();
  return 0;
}
