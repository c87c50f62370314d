// Starts programs as child processes, waits for them and ends them.
//
// For programs that run others on purpose: the demo and whole-system tests. A
// child never outlives its owner, is only ever addressed by its pidfd (so a
// reused pid is never hit), and no wait is without a bound.
#ifndef CMD_PROCESS_CHILD_PROCESS_H_
#define CMD_PROCESS_CHILD_PROCESS_H_

#include <sys/types.h>

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Longest line a child may write to one of its pipes, in bytes.
inline constexpr size_t kChildLineBytesMax = 64 * 1024;

// What to run and what it is connected to. Its stdin is /dev/null.
struct ChildOptions {
  // Path of the program and its arguments. $PATH is not searched.
  std::vector<std::string> argv;
  // Files that receive stdout and stderr, created or emptied first; may be the
  // same. Empty: the child shares ours.
  std::string stdout_path;
  std::string stderr_path;
  // Names of flags that take a descriptor to write to. Each gets a pipe, and
  // "NAME=DESCRIPTOR" is appended to the arguments: "--ready_fd" becomes, say,
  // "--ready_fd=7". Read the other end with ReadLine().
  std::vector<std::string> pipe_flags;
};

// How a child ended.
struct ExitStatus {
  // The code it passed to exit(); -1 if a signal ended it.
  int code = -1;
  // The signal that ended it; 0 if none.
  int signal = 0;

  bool ok() const { return code == 0; }
  // "exit code 3", "signal 9 (Killed)".
  std::string ToString() const;
};

// One running or ended child. Not thread-safe. Movable; a moved-from object
// may only be destroyed or assigned to.
class ChildProcess {
 public:
  // Starts the program in a process group of its own, so that Ctrl-C on our
  // terminal reaches only us. The error is that of exec() if that failed.
  //
  // The kernel kills the child when the calling *thread* ends (that is how
  // PR_SET_PDEATHSIG counts), so call this from a thread that stays.
  static absl::StatusOr<ChildProcess> Start(const ChildOptions& options);

  ChildProcess(ChildProcess&&) = default;
  // Kills the child held so far.
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  // Kills (SIGKILL) and reaps the child if it still runs.
  ~ChildProcess();

  // Last part of the program's path, for messages.
  const std::string& name() const { return name_; }
  pid_t pid() const { return pid_; }

  // Reads up to the next newline, which is not part of the result, from the
  // pipe of `pipe_flag`. DEADLINE_EXCEEDED if no whole line came in time: call
  // again, nothing is lost. UNAVAILABLE if none can come any more.
  // REQUIRES: pipe_flag was in ChildOptions::pipe_flags.
  absl::StatusOr<std::string> ReadLine(absl::string_view pipe_flag,
                                       absl::Duration timeout);

  // Waits for the end. DEADLINE_EXCEEDED if the child still runs.
  absl::StatusOr<ExitStatus> Wait(absl::Duration timeout);

  // Sends a signal. Not an error if the child has ended.
  absl::Status Signal(int signal_number);

  // Sends SIGTERM and waits; if that takes longer than `grace`, sends SIGKILL
  // and returns DEADLINE_EXCEEDED.
  absl::StatusOr<ExitStatus> Terminate(absl::Duration grace);

 private:
  struct Pipe {
    UniqueFd read_end;
    std::string unread;
  };

  ChildProcess() = default;
  void Kill();

  std::string name_;
  pid_t pid_ = -1;
  UniqueFd pidfd_;
  std::map<std::string, Pipe> pipes_;
  std::optional<ExitStatus> exit_status_;
};

// The last `lines_max` lines of a file; what there is of them if it is shorter
// or cannot be read. Reads at most 64 KiB.
std::string TailOfFile(const std::string& path, size_t lines_max);

}  // namespace postcopy

#endif  // CMD_PROCESS_CHILD_PROCESS_H_
