// The flags of pageserverd. Linked into the program only: flags are global.
#ifndef CMD_PAGESERVERD_PAGESERVERD_FLAGS_H_
#define CMD_PAGESERVERD_PAGESERVERD_FLAGS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/config/flag_config.h"
#include "cmd/log/log.h"
#include "cmd/pageserverd/source_daemon.h"

namespace postcopy {

// The rules that flags have beyond their types.
std::vector<FlagCheck> PageserverdChecks();

// Their current values; takes as many descriptors as the process may have, and
// says in `log`, which the daemon writes to, if these are too few for
// --vms_max. FAILED_PRECONDITION if they do not suffice for one VM.
absl::StatusOr<SourceDaemon::Options> PageserverdOptions(Log* log);

// --drain_timeout.
absl::Duration PageserverdDrainTimeout();
// --metrics_address.
std::string PageserverdMetricsAddress();
// --ready_fd.
int PageserverdReadyFd();

}  // namespace postcopy

#endif  // CMD_PAGESERVERD_PAGESERVERD_FLAGS_H_
