// Reads the command line into this program's ABSL_FLAGs.
//
// In place of absl::ParseCommandLine, which ends the process with exit code 1
// on a mistake (here that is a usage error, 2) and prints a page-long message.
#ifndef CMD_POSTCOPYCTL_FLAG_PARSER_H_
#define CMD_POSTCOPYCTL_FLAG_PARSER_H_

#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace postcopy {

// What is not a flag with a value.
struct CommandLine {
  // Everything that does not start with '-', in order, and all after "--".
  std::vector<std::string> arguments;
  // Names of the flags that were given.
  std::set<std::string> flags;
  // --help or -h was there.
  bool help = false;
};

// Understands --name=value, --name value, --bool_name and --nobool_name; '-'
// and '_' are the same within a name. `arguments` is argv without argv[0].
// INVALID_ARGUMENT with a sentence for an unknown flag or a bad value; some
// flags may have been set by then.
absl::StatusOr<CommandLine> ParseFlags(
    const std::vector<std::string>& arguments);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_FLAG_PARSER_H_
