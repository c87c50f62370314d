// The flags of faultd. Linked into the program only: flags are global.
#ifndef CMD_FAULTD_FAULTD_FLAGS_H_
#define CMD_FAULTD_FAULTD_FLAGS_H_

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/config/flag_config.h"
#include "cmd/faultd/destination_daemon.h"
#include "cmd/faultd/fault_recorder.h"
#include "cmd/faultd/snapshot_service.h"
#include "cmd/log/log.h"

namespace postcopy {

// The rules that flags have beyond their types.
std::vector<FlagCheck> FaultdChecks();

// Their current values, without what is shared by both parts: bulk_share and
// recorder.
struct FaultdOptions {
  DestinationDaemon::Options destination;
  // nullopt: neither --snapshot nor --snapshot_source.
  std::optional<SnapshotService::Options> snapshot;
  // For the FaultRecorder; nullopt: no --trace_dir.
  std::optional<FaultRecorder::Options> traces;
  // For the BulkShare.
  size_t bulk_requests = 0;
};

// Takes as many descriptors as the process may have, and says in `log`, which
// the daemon writes to, if these are too few for --vms_max. FAILED_PRECONDITION
// if they do not suffice for one VM.
absl::StatusOr<FaultdOptions> FaultdOptionsFromFlags(Log* log);

// --drain_timeout.
absl::Duration FaultdDrainTimeout();
// --metrics_address.
std::string FaultdMetricsAddress();
// --ready_fd.
int FaultdReadyFd();

}  // namespace postcopy

#endif  // CMD_FAULTD_FAULTD_FLAGS_H_
