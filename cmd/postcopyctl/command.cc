#include "cmd/postcopyctl/command.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cmd/postcopyctl/report.h"

namespace postcopy {
namespace {

constexpr char kMigrate[] =
    "vm migration_id source_data policy deadline_per_gib rounds_max bandwidth "
    "compress pull_order pause_command resume_command timeout dry_run";
constexpr char kCreate[] =
    "vm migration_id source_data policy deadline_per_gib rounds_max bandwidth "
    "compress pull_order dry_run";

constexpr Command kCommands[] = {
    {"migrate", "migrate a VM from the source to the destination", kMigrate,
     ValidateMigrate, RunMigrate},
    {"create", "create a migration and leave it to others", kCreate,
     ValidateCreate, RunCreate},
    {"list", "list the migrations that the daemons know", "", ValidateList,
     RunList},
    {"get", "show one migration, each side", "migration_id", ValidateGet,
     RunGet},
    {"watch", "follow one migration until it has ended", "migration_id timeout",
     ValidateWatch, RunWatch},
    {"switch-over", "hand the guest over now (--source)",
     "migration_id timeout", ValidateSwitchOver, RunSwitchOver},
    {"cancel", "give up; the guest goes on at the source", "migration_id",
     ValidateCancel, RunCancel},
    {"pause", "leave the source alone until recover (--destination)",
     "migration_id", ValidatePause, RunPause},
    {"recover", "connect to the source again (--destination)",
     "migration_id source_data", ValidateRecover, RunRecover},
    {"limits", "change the bandwidth limit of each side given",
     "migration_id bandwidth", ValidateLimits, RunLimits},
    {"abandon", "give up pages that cannot come (--destination)",
     "migration_id lose_missing_pages", ValidateAbandon, RunAbandon},
    {"delete", "forget a migration that has ended", "migration_id",
     ValidateDelete, RunDelete},
    {"health", "ask the daemons whether they serve", "", ValidateHealth,
     RunHealth},
    {"metrics", "print metrics (the flags name --metrics_address)", "",
     ValidateMetrics, RunMetrics, /*plaintext=*/true},
    {"completion", "print what makes bash complete commands and flags", "",
     ValidateCompletion, RunCompletion},
    {"dev-certs", "make certificates for a trial", "dir hosts force",
     ValidateDevCerts, RunDevCerts},
    {"help", "print this text", "", ValidateHelp, RunHelp},
};

}  // namespace

absl::Span<const Command> AllCommands() { return kCommands; }

const Command* FindCommand(absl::string_view name) {
  for (const Command& command : kCommands) {
    if (command.name == name) return &command;
  }
  return nullptr;
}

absl::StatusOr<Clients> ConnectAll(const CommandContext& context) {
  Clients clients;
  auto add = [&](v1::Role role, const std::string& address) {
    if (address.empty()) return;
    clients.push_back(
        std::make_unique<DaemonClient>(role, address, context.security));
  };
  add(v1::ROLE_SOURCE, context.options.source);
  add(v1::ROLE_DESTINATION, context.options.destination);
  for (const auto& client : clients) {
    absl::Status status = client->Connect();
    if (!status.ok()) return status;
  }
  return clients;
}

absl::Status ChangeEach(
    const CommandContext& context,
    const std::function<absl::StatusOr<v1::Migration>(DaemonClient&)>& change) {
  absl::StatusOr<Clients> clients = ConnectAll(context);
  if (!clients.ok()) return clients.status();
  absl::Status result;
  for (const auto& client : *clients) {
    absl::StatusOr<v1::Migration> migration = change(*client);
    if (migration.ok()) PrintMigration(context, *migration);
    result.Update(migration.status());
    // The source comes first and says whether it is too late.
    if (absl::IsFailedPrecondition(result)) break;
  }
  return result;
}

absl::Status ChangeDestination(
    const CommandContext& context,
    const std::function<absl::StatusOr<v1::Migration>(DaemonClient&)>& change) {
  CommandContext destination = context;
  destination.options.source.clear();
  return ChangeEach(destination, change);
}

absl::Status CheckDestination(const Options& options,
                              absl::string_view command) {
  if (!options.destination.empty()) return CheckMigrationId(options);
  return absl::InvalidArgumentError(absl::StrCat(
      command, " needs --destination: it is the one that fetches pages"));
}

void PrintMigration(const CommandContext& context,
                    const v1::Migration& migration) {
  *context.out << (context.json() ? MigrationJson(migration) + "\n"
                                  : MigrationTable(migration) + "\n");
}

}  // namespace postcopy
