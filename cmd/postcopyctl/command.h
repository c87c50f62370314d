// The commands of postcopyctl: each is one file with one function of this
// header, and one row of the table in command.cc.
#ifndef CMD_POSTCOPYCTL_COMMAND_H_
#define CMD_POSTCOPYCTL_COMMAND_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cmd/postcopyctl/daemon_client.h"
#include "cmd/postcopyctl/options.h"
#include "cmd/security/client_security.h"

namespace postcopy {

// What a command works with.
struct CommandContext {
  Options options;
  std::ostream* out;  // Data.
  std::ostream* err;  // Messages and progress.
  // Columns of the terminal behind `err`; 0 if it is none.
  size_t terminal_width = 0;
  // Whether the user wants to stop.
  std::function<bool()> interrupted = [] { return false; };

  // How to dial; filled in like `options`.
  ClientSecurity security = {};

  // Valid after CheckCommon().
  bool json() const { return options.output == "json"; }
};

struct Command {
  absl::string_view name;
  absl::string_view summary;
  // Names of the flags it has beside those of all, separated by spaces, in the
  // order of its help.
  absl::string_view flags;
  // INVALID_ARGUMENT with a sentence if the options do not fit the command.
  absl::Status (*validate)(const Options& options);
  // Does it. The status becomes message and exit code (ExitCodeOf()).
  absl::Status (*run)(const CommandContext& context);
  // Whether the addresses are of what is plaintext always: then neither
  // certificates nor --insecure are needed, and none are read.
  bool plaintext = false;
};

absl::Span<const Command> AllCommands();
// Null if there is none of that name.
const Command* FindCommand(absl::string_view name);

// --- What commands share ----------------------------------------------------

// Connected clients for the addresses given, the source first. UNAVAILABLE if
// one cannot be reached.
using Clients = std::vector<std::unique_ptr<DaemonClient>>;
absl::StatusOr<Clients> ConnectAll(const CommandContext& context);

// `change` makes a call to each daemon whose address is given, the source
// first; each answer is printed. The first error, behind which no daemon is
// called if it is FAILED_PRECONDITION.
absl::Status ChangeEach(
    const CommandContext& context,
    const std::function<absl::StatusOr<v1::Migration>(DaemonClient&)>& change);
// The same at the destination alone.
absl::Status ChangeDestination(
    const CommandContext& context,
    const std::function<absl::StatusOr<v1::Migration>(DaemonClient&)>& change);
// For commands that only a destination takes.
absl::Status CheckDestination(const Options& options,
                              absl::string_view command);

// One side in the format asked for.
void PrintMigration(const CommandContext& context,
                    const v1::Migration& migration);

// --- One file each ----------------------------------------------------------

absl::Status ValidateMigrate(const Options& options);
absl::Status RunMigrate(const CommandContext& context);
absl::Status ValidateList(const Options& options);
absl::Status RunList(const CommandContext& context);
absl::Status ValidateGet(const Options& options);
absl::Status RunGet(const CommandContext& context);
absl::Status ValidateWatch(const Options& options);
absl::Status RunWatch(const CommandContext& context);
absl::Status ValidateSwitchOver(const Options& options);
absl::Status RunSwitchOver(const CommandContext& context);
absl::Status ValidateCancel(const Options& options);
absl::Status RunCancel(const CommandContext& context);
absl::Status ValidateCompletion(const Options& options);
absl::Status RunCompletion(const CommandContext& context);
absl::Status ValidateDevCerts(const Options& options);
absl::Status RunDevCerts(const CommandContext& context);
absl::Status ValidateCreate(const Options& options);
absl::Status RunCreate(const CommandContext& context);
absl::Status ValidatePause(const Options& options);
absl::Status RunPause(const CommandContext& context);
absl::Status ValidateRecover(const Options& options);
absl::Status RunRecover(const CommandContext& context);
absl::Status ValidateLimits(const Options& options);
absl::Status RunLimits(const CommandContext& context);
absl::Status ValidateAbandon(const Options& options);
absl::Status RunAbandon(const CommandContext& context);
absl::Status ValidateDelete(const Options& options);
absl::Status RunDelete(const CommandContext& context);
absl::Status ValidateHealth(const Options& options);
absl::Status RunHealth(const CommandContext& context);
absl::Status ValidateMetrics(const Options& options);
absl::Status RunMetrics(const CommandContext& context);
absl::Status ValidateHelp(const Options& options);
absl::Status RunHelp(const CommandContext& context);
// What `postcopyctl COMMAND --help` prints.
void PrintCommandHelp(const CommandContext& context, const Command& command);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_COMMAND_H_
