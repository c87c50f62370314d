// A daemon's configuration: its file below its command line. Linked into the
// daemons only: it brings flags.
#ifndef CMD_CONFIG_FLAG_CONFIG_H_
#define CMD_CONFIG_FLAG_CONFIG_H_

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/config/config_file.h"

namespace postcopy {

// The exit code of a daemon whose configuration cannot work: units do not start
// it again (RestartPreventExitStatus=).
inline constexpr int kWrongConfigCode = 2;

// A rule for a flag beyond its type. `check` looks at the flag's value now.
// Without a flag it is about how several go together, and its message names
// them; --print_config, which is to show the defaults too, does not ask it.
struct FlagCheck {
  absl::string_view flag;
  std::function<absl::Status()> check;
};

// Flags and the fields of one message are the same thing under the same names:
// the file sets the flags, the command line overrides them, everybody reads
// flags. A repeated field is a flag whose text is a list with commas. Flags
// about the process itself (--config, --check_config, --print_config,
// --ready_fd) have no field. All of it is for main's thread.
class FlagConfig {
 public:
  // `type` is the message, and outlives this. `checks` are made in order,
  // whenever the flags have been set.
  FlagConfig(const google::protobuf::Message* type,
             std::vector<FlagCheck> checks)
      : type_(*type), checks_(std::move(checks)) {}

  // What main does first: sets the flags from the file that --config names and
  // from the command line. Returns the code with which the process must end
  // now: 0 after --check_config ("OK") and --print_config, whose text is on
  // stdout and a file with the same meaning; kWrongConfigCode if it is wrong,
  // with the reason on stderr. nullopt: go on. Like absl::ParseCommandLine it
  // ends the process itself for --help (code 0 or 1) and for a command line
  // that no flag understands (1).
  std::optional<int> Load(int argc, char** argv);

  // Reads the file again, below the same command line, and returns the flags
  // that have another value than before and may be changed while the daemon
  // runs (`reloadable`): those are set. `waiting` gets the names of those that
  // wait for a restart. On failure nothing has changed; the errors are those of
  // ConfigFile::Read, and INVALID_ARGUMENT of a check.
  // REQUIRES: Load has returned nullopt.
  absl::StatusOr<std::vector<std::string>> Reload(
      const std::vector<std::string>& reloadable,
      std::vector<std::string>* waiting);

  // All flags as they are, as text.
  std::string Print() const;

  // Flags of this program that have no field, and fields that have no flag:
  // mistakes of who added one, which --check_config tells. Sorted.
  std::vector<std::string> Unmatched() const;

 private:
  // Sets flags and makes the checks, or, unless `together`, those that are of
  // one flag; with an error the flags' values are of no use.
  absl::Status Apply(bool together);
  absl::Status SetFromFile(const ConfigFile& file) const;
  absl::Status Check(const ConfigFile& file, bool together) const;

  const google::protobuf::Message& type_;
  const std::vector<FlagCheck> checks_;
  int argc_ = 0;
  char** argv_ = nullptr;
};

// Reload for a daemon: a sentence for its log that says what came of it.
std::string ReloadConfig(FlagConfig& config,
                         const std::vector<std::string>& reloadable);

}  // namespace postcopy

#endif  // CMD_CONFIG_FLAG_CONFIG_H_
