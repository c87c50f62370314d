// list: what the daemons know.

#include <vector>

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/report.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

absl::Status ValidateList(const Options& options) {
  return CheckAnyAddress(options);
}

absl::Status RunList(const CommandContext& context) {
  absl::StatusOr<Clients> clients = ConnectAll(context);
  if (!clients.ok()) return clients.status();
  std::vector<v1::Migration> all;
  for (const auto& client : *clients) {
    absl::StatusOr<std::vector<v1::Migration>> some = client->List();
    if (!some.ok()) return some.status();
    all.insert(all.end(), some->begin(), some->end());
  }
  if (!context.json()) {
    *context.out << MigrationListTable(all);
    return absl::OkStatus();
  }
  for (const v1::Migration& migration : all) PrintMigration(context, migration);
  return absl::OkStatus();
}

}  // namespace postcopy
