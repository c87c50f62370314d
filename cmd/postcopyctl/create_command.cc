// create: one side or both, for others to drive.

#include "absl/strings/str_cat.h"
#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/names.h"

namespace postcopy {
namespace {

// A daemon that does not know dry runs has created the migration.
absl::Status CheckDryRun(const CommandContext& context, DaemonClient& client,
                         const v1::Migration& migration) {
  if (migration.state() == v1::MIGRATION_STATE_UNSPECIFIED) {
    return absl::OkStatus();
  }
  const absl::Status cancelled =
      client.Cancel(RandomId("cancel"), context.options.migration_id).status();
  return absl::UnimplementedError(absl::StrCat(
      client.Description(), " is too old for --dry_run: it created the ",
      "migration, which ",
      cancelled.ok() ? "is cancelled" : "could not be cancelled"));
}

}  // namespace

absl::Status ValidateCreate(const Options& options) {
  return ToCreateRequests(options).status();
}

absl::Status RunCreate(const CommandContext& context) {
  absl::StatusOr<CreateRequests> requests = ToCreateRequests(context.options);
  if (!requests.ok()) return requests.status();
  absl::StatusOr<Clients> clients = ConnectAll(context);
  if (!clients.ok()) return clients.status();
  for (const auto& client : *clients) {
    absl::StatusOr<v1::Migration> migration = client->Create(
        client->role() == v1::ROLE_SOURCE ? requests->source
                                          : requests->destination);
    if (!migration.ok()) return migration.status();
    if (context.options.dry_run) {
      absl::Status dry = CheckDryRun(context, *client, *migration);
      if (!dry.ok()) return dry;
    }
    PrintMigration(context, *migration);
  }
  return absl::OkStatus();
}

}  // namespace postcopy
