// cancel: gives up before the switch-over.

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/names.h"

namespace postcopy {

absl::Status ValidateCancel(const Options& options) {
  return ValidateGet(options);
}

absl::Status RunCancel(const CommandContext& context) {
  return ChangeEach(context, [&](DaemonClient& client) {
    return client.Cancel(RandomId("cancel"), context.options.migration_id);
  });
}

}  // namespace postcopy
