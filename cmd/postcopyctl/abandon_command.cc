// abandon: gives up the pages of a source that is gone for good.

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/names.h"

namespace postcopy {

absl::Status ValidateAbandon(const Options& options) {
  if (!options.lose_missing_pages) {
    return absl::InvalidArgumentError(
        "abandon needs --lose_missing_pages: the guest gets SIGBUS at each "
        "page "
        "that is missing, for good");
  }
  return CheckDestination(options, "abandon");
}

absl::Status RunAbandon(const CommandContext& context) {
  return ChangeDestination(context, [&](DaemonClient& client) {
    return client.Abandon(RandomId("abandon"), context.options.migration_id);
  });
}

}  // namespace postcopy
