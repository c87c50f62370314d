// cancel: gives up before the switch-over.

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/names.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

absl::Status ValidateCancel(const Options& options) {
  return ValidateGet(options);
}

absl::Status RunCancel(const CommandContext& context) {
  absl::StatusOr<Clients> clients = ConnectAll(context);
  if (!clients.ok()) return clients.status();
  absl::Status result;
  for (const auto& client : *clients) {
    absl::StatusOr<v1::Migration> migration =
        client->Cancel(RandomId("cancel"), context.options.migration_id);
    if (migration.ok()) PrintMigration(context, *migration);
    result.Update(migration.status());
    // The source comes first and says whether it is too late.
    if (absl::IsFailedPrecondition(result)) break;
  }
  return result;
}

}  // namespace postcopy
