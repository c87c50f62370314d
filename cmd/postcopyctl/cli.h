// From command line to exit code.
#ifndef CMD_POSTCOPYCTL_CLI_H_
#define CMD_POSTCOPYCTL_CLI_H_

#include <string>
#include <vector>

#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/exit_code.h"

namespace postcopy {

// `arguments` is argv without argv[0]; `context.options` is filled in here.
ExitCode RunCommandLine(const std::vector<std::string>& arguments,
                        CommandContext context);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_CLI_H_
