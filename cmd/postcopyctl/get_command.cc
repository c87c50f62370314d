// get: one migration, each side that was asked for.

#include "cmd/postcopyctl/command.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

absl::Status ValidateGet(const Options& options) {
  absl::Status status = CheckMigrationId(options);
  return status.ok() ? CheckAnyAddress(options) : status;
}

absl::Status RunGet(const CommandContext& context) {
  absl::StatusOr<Clients> clients = ConnectAll(context);
  if (!clients.ok()) return clients.status();
  absl::Status result;
  for (const auto& client : *clients) {
    absl::StatusOr<v1::Migration> migration =
        client->Get(context.options.migration_id);
    // One side may have forgotten what the other still knows.
    if (migration.ok()) PrintMigration(context, *migration);
    result.Update(migration.status());
  }
  return result;
}

}  // namespace postcopy
