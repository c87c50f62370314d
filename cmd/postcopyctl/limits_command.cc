// limits: changes the bandwidth limit while a migration goes on.

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/names.h"

namespace postcopy {

absl::Status ValidateLimits(const Options& options) {
  if (options.given.count("bandwidth") == 0) {
    return absl::InvalidArgumentError(
        "limits needs --bandwidth: which limit? 0 is none");
  }
  absl::Status status = CheckBandwidth(options.bandwidth);
  return status.ok() ? ValidateGet(options) : status;
}

absl::Status RunLimits(const CommandContext& context) {
  return ChangeEach(context, [&](DaemonClient& client) {
    return client.SetLimits(RandomId("limits"), context.options.migration_id,
                            context.options.bandwidth.value());
  });
}

}  // namespace postcopy
