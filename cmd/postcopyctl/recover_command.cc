// recover: the destination connects to its source again, perhaps elsewhere.

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/names.h"

namespace postcopy {

absl::Status ValidateRecover(const Options& options) {
  absl::Status status = CheckDestination(options, "recover");
  if (!status.ok() || options.source_data.empty()) return status;
  return CheckAddress("--source_data", options.source_data);
}

absl::Status RunRecover(const CommandContext& context) {
  return ChangeDestination(context, [&](DaemonClient& client) {
    return client.Recover(RandomId("recover"), context.options.migration_id,
                          context.options.source_data);
  });
}

}  // namespace postcopy
