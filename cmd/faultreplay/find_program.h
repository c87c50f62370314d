// Where the daemons are that are measured.
#ifndef CMD_FAULTREPLAY_FIND_PROGRAM_H_
#define CMD_FAULTREPLAY_FIND_PROGRAM_H_

#include <string>

#include "absl/status/status.h"

namespace postcopy {

// Leaves `path` alone if it is not empty. Else sets it to where the program
// `name` belongs to the program at `own`, in the folder F: where a build has it
// (F/../NAME/NAME) or, if it is not there, where the package has it
// (F/../sbin/NAME, that is /usr/sbin for /usr/bin). NOT_FOUND if there is
// no program at `path`.
absl::Status FindProgram(const std::string& own, const std::string& name,
                         std::string* path);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_FIND_PROGRAM_H_
