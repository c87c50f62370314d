// A program that is stopped in the middle, and made to do system calls.
#ifndef CMD_FAULTREPLAY_TRACED_PROCESS_H_
#define CMD_FAULTREPLAY_TRACED_PROCESS_H_

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace postcopy {

// A child, by ptrace(2); x86-64 only. It runs untouched until Freeze, all its
// threads stand between Freeze and Thaw, and it is watched after that: a child
// of its own that does not share its memory ends both (see Wait). Killed if it
// still lives when its owner does not.
//
// All calls by one thread, which must have no other children, but Signal.
class TracedProcess {
 public:
  // Starts a program, looked for in $PATH, with our stdin, stdout and stderr.
  // NOT_FOUND and others: of posix_spawnp.
  static absl::StatusOr<std::unique_ptr<TracedProcess>> Start(
      const std::vector<std::string>& argv);

  TracedProcess(const TracedProcess&) = delete;
  TracedProcess& operator=(const TracedProcess&) = delete;
  ~TracedProcess();

  pid_t pid() const { return pid_; }

  // Stops every thread, also those that are being made. PERMISSION_DENIED where
  // ptrace is not permitted or somebody else uses it, FAILED_PRECONDITION if
  // the program has ended, UNIMPLEMENTED if it is no 64-bit program.
  absl::Status Freeze();

  // Has the first thread make a system call; its result, or -errno. Signals
  // wait meanwhile. REQUIRES: frozen.
  absl::StatusOr<int64_t> Call(int64_t number,
                               const std::array<uint64_t, 6>& arguments);

  // Lets all go on where they were. REQUIRES: frozen.
  absl::Status Thaw();

  // Sends a signal to the program. Any thread.
  void Signal(int signal_number) const;

  // True, and it has ended, or false: it runs. Before Freeze only.
  bool HasEnded();

  // Waits for the end of a program that was thawed: what wait(2) says of it.
  // FAILED_PRECONDITION, and it was killed, if it had forked: pages that are
  // missing here would be zeros in the other.
  absl::StatusOr<int> Wait();

 private:
  explicit TracedProcess(pid_t pid) : pid_(pid) {}

  absl::Status Seize(pid_t thread);
  // Until `thread` stands; false if it has ended instead.
  absl::StatusOr<bool> AwaitStop(pid_t thread);
  absl::Status PrepareCalls();
  // Lets the first thread run to its next stop of a system call.
  absl::Status Step();
  absl::Status FinishCalls();
  // What a thread that has stopped while the program runs needs to go on.
  void LetGoOn(pid_t thread, int status);
  // True if `thread` is one of the program's.
  bool IsOwn(pid_t thread) const;
  void KillForked(pid_t child);

  const pid_t pid_;
  bool reaped_ = false;
  bool forked_ = false;
  // Attached, and how each was stopped: a group stop goes on as that.
  std::map<pid_t, bool> in_group_stop_;
  // While calls are made.
  bool calling_ = false;
  user_regs_struct registers_ = {};
  uint64_t signals_ = 0;
  uint64_t syscall_address_ = 0;
};

// Where the two bytes of the instruction "syscall" lie in what the process may
// execute. NOT_FOUND if nowhere.
absl::StatusOr<uint64_t> FindSyscallInstruction(pid_t pid);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_TRACED_PROCESS_H_
