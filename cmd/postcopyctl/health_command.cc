// health: what the daemons say of themselves and of each of their services.

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/json_writer.h"
#include "cmd/postcopyctl/names.h"

namespace postcopy {
namespace {

// The daemon as a whole, then services that it may or may not know by name.
constexpr const char* kServices[] = {"", "postcopy.v1.MigrationService",
                                     "postcopy.v1.DataPlaneService"};

void Print(const CommandContext& context, v1::Role role,
           const std::string& service, const std::string& health) {
  if (context.json()) {
    JsonObject json;
    json.Add("role", RoleName(role))
        .Add("service", service)
        .Add("health", health);
    *context.out << json.ToString() << "\n";
    return;
  }
  *context.out << absl::StreamFormat("%-12s %-30s %s\n", RoleName(role),
                                     service.empty() ? "all" : service, health);
}

absl::Status CheckDaemon(const CommandContext& context, DaemonClient& client) {
  absl::Status result;
  for (const std::string service : kServices) {
    absl::StatusOr<std::string> health = client.Health(service);
    if (absl::IsNotFound(health.status()) && !service.empty()) continue;
    if (!health.ok()) return health.status();
    Print(context, client.role(), service, *health);
    if (*health == "SERVING") continue;
    result.Update(absl::InternalError(
        absl::StrCat(client.Description(), " says of ",
                     service.empty() ? "itself" : service, ": ", *health)));
  }
  return result;
}

}  // namespace

absl::Status ValidateHealth(const Options& options) {
  return CheckAnyAddress(options);
}

absl::Status RunHealth(const CommandContext& context) {
  absl::StatusOr<Clients> clients = ConnectAll(context);
  if (!clients.ok()) return clients.status();
  absl::Status result;
  for (const auto& client : *clients) {
    result.Update(CheckDaemon(context, *client));
  }
  return result;
}

}  // namespace postcopy
