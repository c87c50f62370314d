// faultreplay without main().
#ifndef CMD_FAULTREPLAY_CLI_H_
#define CMD_FAULTREPLAY_CLI_H_

#include <ostream>
#include <string>
#include <vector>

namespace postcopy {

// Does what the arguments (argv without argv[0]) say. Returns the exit code.
int RunFaultReplay(const std::vector<std::string>& arguments, std::ostream& out,
                   std::ostream& err);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_CLI_H_
