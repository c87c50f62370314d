// delete: forgets a migration that has ended.

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/names.h"

namespace postcopy {

absl::Status ValidateDelete(const Options& options) {
  return ValidateGet(options);
}

absl::Status RunDelete(const CommandContext& context) {
  absl::StatusOr<Clients> clients = ConnectAll(context);
  if (!clients.ok()) return clients.status();
  absl::Status result;
  for (const auto& client : *clients) {
    result.Update(
        client->Delete(RandomId("delete"), context.options.migration_id));
  }
  return result;
}

}  // namespace postcopy
