// pause: the destination leaves its source alone.

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/names.h"

namespace postcopy {

absl::Status ValidatePause(const Options& options) {
  return CheckDestination(options, "pause");
}

absl::Status RunPause(const CommandContext& context) {
  return ChangeDestination(context, [&](DaemonClient& client) {
    return client.Pause(RandomId("pause"), context.options.migration_id);
  });
}

}  // namespace postcopy
