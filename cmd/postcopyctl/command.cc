#include "cmd/postcopyctl/command.h"

#include <algorithm>
#include <utility>

#include "cmd/postcopyctl/report.h"

namespace postcopy {
namespace {

constexpr Command kCommands[] = {
    {"migrate", "migrate a VM from the source to the destination",
     ValidateMigrate, RunMigrate},
    {"list", "list the migrations that the daemons know", ValidateList,
     RunList},
    {"get", "show one migration, each side", ValidateGet, RunGet},
    {"watch", "follow one migration until it has ended", ValidateWatch,
     RunWatch},
    {"switch-over", "hand the guest over now (--source)", ValidateSwitchOver,
     RunSwitchOver},
    {"cancel", "give up; the guest goes on at the source", ValidateCancel,
     RunCancel},
    {"dev-certs", "make certificates for a trial (--dir, --hosts)",
     ValidateDevCerts, RunDevCerts},
    {"help", "print this text", ValidateHelp, RunHelp},
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

void PrintMigration(const CommandContext& context,
                    const v1::Migration& migration) {
  *context.out << (context.json() ? MigrationJson(migration) + "\n"
                                  : MigrationTable(migration) + "\n");
}

}  // namespace postcopy
