// migrate: the whole of it.

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/migrate.h"
#include "cmd/postcopyctl/progress.h"
#include "cmd/postcopyctl/report.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

absl::Status ValidateMigrate(const Options& options) {
  return ToMigrateOptions(options).status();
}

absl::Status RunMigrate(const CommandContext& context) {
  absl::StatusOr<MigrateOptions> options = ToMigrateOptions(context.options);
  if (!options.ok()) return options.status();
  options->security = context.security;
  if (context.options.dry_run) {
    CommandContext create = context;
    // Chosen anew each time, unless it was given.
    create.options.migration_id = options->migration_id;
    return RunCreate(create);
  }
  ProgressPrinter printer(context.err, context.terminal_width, "postcopyctl: ");
  printer.OnMessage("migration " + options->migration_id);
  MigrateResult result = Migrate(*options, context.interrupted, &printer);
  printer.Finish();
  // A migration that was never created has no numbers.
  if (result.source.state() != v1::MIGRATION_STATE_UNSPECIFIED) {
    MigrateReport report = MergeReport(*options, result);
    *context.out << (context.json() ? ReportJson(report) + "\n"
                                    : ReportTable(report));
  }
  return result.status;
}

}  // namespace postcopy
