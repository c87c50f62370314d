// switch-over: hands the guest over without waiting for advice.

#include <algorithm>

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/migrate.h"
#include "cmd/postcopyctl/names.h"
#include "grpcpp/client_context.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

absl::Status ValidateSwitchOver(const Options& options) {
  if (options.source.empty()) {
    return absl::InvalidArgumentError(
        "switch-over needs --source: only the source hands a guest over");
  }
  return CheckMigrationId(options);
}

absl::Status RunSwitchOver(const CommandContext& context) {
  DaemonClient source(v1::ROLE_SOURCE, context.options.source,
                      context.security);
  absl::Status status = source.Connect();
  if (!status.ok()) return status;
  grpc::ClientContext call;
  absl::StatusOr<v1::Migration> migration = source.SwitchOver(
      RandomId("switch-over"), context.options.migration_id,
      std::min(context.options.timeout, MigrateOptions().switch_over_timeout),
      &call);
  if (!migration.ok()) return migration.status();
  PrintMigration(context, *migration);
  return absl::OkStatus();
}

}  // namespace postcopy
