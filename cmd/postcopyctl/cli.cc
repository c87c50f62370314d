#include "cmd/postcopyctl/cli.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cmd/postcopyctl/flag_parser.h"
#include "cmd/postcopyctl/flags.h"
#include "cmd/security/client_security.h"

namespace postcopy {
namespace {

ExitCode UsageError(const CommandContext& context, absl::string_view what) {
  *context.err << "postcopyctl: " << what << "\nSee: postcopyctl --help"
               << std::endl;
  return ExitCode::kUsage;
}

// The command named, or why it is none.
absl::StatusOr<const Command*> Choose(const CommandLine& line) {
  // Whoever asks for help gets it, whatever else stands on the line.
  if (line.help &&
      (line.arguments.empty() || FindCommand(line.arguments[0]) == nullptr)) {
    return FindCommand("help");
  }
  if (line.arguments.empty()) {
    return absl::InvalidArgumentError("what to do?");
  }
  // The only command with a word behind it: which shell.
  const bool for_bash =
      line.arguments == std::vector<std::string>{"completion", "bash"};
  if (line.arguments.size() > 1 && !line.help && !for_bash) {
    return absl::InvalidArgumentError(absl::StrCat(
        "one command at a time, and flags start with --: ", line.arguments[1]));
  }
  const Command* command = FindCommand(line.arguments[0]);
  if (command != nullptr) return command;
  return absl::InvalidArgumentError(
      absl::StrCat("there is no command ", line.arguments[0]));
}

// Only where a daemon is dialled: other commands need no certificates.
absl::Status SetSecurity(CommandContext& context) {
  const Options& options = context.options;
  if (options.source.empty() && options.destination.empty()) {
    return absl::OkStatus();
  }
  absl::StatusOr<ClientSecurity> security =
      ClientSecurity::FromFlags(options.tls_dir, options.insecure);
  if (security.ok()) context.security = *std::move(security);
  return security.status();
}

}  // namespace

ExitCode RunCommandLine(const std::vector<std::string>& arguments,
                        CommandContext context) {
  absl::StatusOr<CommandLine> line = ParseFlags(arguments);
  if (!line.ok()) return UsageError(context, line.status().message());
  absl::StatusOr<const Command*> command = Choose(*line);
  if (!command.ok()) return UsageError(context, command.status().message());
  if (line->help && (*command)->name != "help") {
    PrintCommandHelp(context, **command);
    return ExitCode::kOk;
  }
  context.options = OptionsFromFlags();
  context.options.given = line->flags;
  const bool secured = !(*command)->plaintext;
  absl::Status valid = CheckCommon(context.options);
  if (valid.ok() && secured) valid = CheckSecurity(context.options);
  if (valid.ok()) valid = (*command)->validate(context.options);
  if (!valid.ok() && !line->help) return UsageError(context, valid.message());

  absl::Status status = secured ? SetSecurity(context) : absl::OkStatus();
  if (status.ok()) status = (*command)->run(context);
  if (!status.ok()) {
    *context.err << "postcopyctl: " << status.message() << std::endl;
  }
  return ExitCodeOf(status);
}

}  // namespace postcopy
