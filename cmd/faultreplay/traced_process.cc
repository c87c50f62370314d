#include "cmd/faultreplay/traced_process.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cmd/faultreplay/process_memory.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

constexpr long kOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK |
                          PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL;
// What PTRACE_O_TRACESYSGOOD makes of the stops of system calls.
constexpr int kSyscallStop = SIGTRAP | 0x80;
// Selector of 64-bit code.
constexpr uint64_t kCode64 = 0x33;

int EventOf(int status) { return status >> 16; }

bool IsGroupStop(int status) {
  const int signal = WSTOPSIG(status);
  return EventOf(status) == PTRACE_EVENT_STOP &&
         (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN ||
          signal == SIGTTOU);
}

absl::Status PtraceError(const char* what) {
  const std::string text =
      absl::StrCat("ptrace, ", what, ": ", ::strerrordesc_np(errno));
  if (errno == EPERM || errno == EACCES) {
    return absl::PermissionDeniedError(absl::StrCat(
        text,
        "; it takes CAP_SYS_PTRACE or kernel.yama.ptrace_scope=0, and "
        "no debugger at the program"));
  }
  return absl::InternalError(text);
}

absl::Status HasEndedStatus() {
  return absl::FailedPreconditionError(
      "the program ended before it was recorded: begin earlier (--after)");
}

// waitpid() of what this thread has started or attached to.
pid_t WaitFor(pid_t thread, int* status, int flags = 0) {
  pid_t waited;
  do {
    waited = ::waitpid(thread, status, __WALL | __WNOTHREAD | flags);
  } while (waited < 0 && errno == EINTR);
  return waited;
}

std::vector<pid_t> ThreadsOf(pid_t pid) {
  std::vector<pid_t> threads;
  DIR* const tasks = ::opendir(absl::StrCat("/proc/", pid, "/task").c_str());
  if (tasks == nullptr) return threads;
  while (const dirent* entry = ::readdir(tasks)) {
    int thread = 0;
    if (absl::SimpleAtoi(entry->d_name, &thread)) threads.push_back(thread);
  }
  ::closedir(tasks);
  return threads;
}

}  // namespace

absl::StatusOr<uint64_t> FindSyscallInstruction(pid_t pid) {
  const auto memory = ProcessMemory::Open(pid);
  if (!memory.ok()) return memory.status();
  const auto mappings = ReadMappings(pid);
  if (!mappings.ok()) return mappings.status();
  for (const Mapping& mapping : *mappings) {
    if (!absl::StartsWith(mapping.permissions, "r-x")) continue;
    std::string code(mapping.end - mapping.begin, '\0');
    // [vsyscall] can be executed there and not be read.
    if (!memory->Read(mapping.begin, code.data(), code.size()).ok()) continue;
    const size_t at = code.find("\x0f\x05");
    if (at != std::string::npos) return mapping.begin + at;
  }
  return absl::NotFoundError(
      "the program has no instruction \"syscall\" in its memory");
}

absl::StatusOr<std::unique_ptr<TracedProcess>> TracedProcess::Start(
    const std::vector<std::string>& argv) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  // Whatever we block or ignore is none of the program's business.
  sigset_t none, all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, arguments[0], nullptr, &attributes,
                                   arguments.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    const std::string what = absl::StrCat("cannot start ", argv[0]);
    return absl::ErrnoToStatus(error, what);
  }
  return std::unique_ptr<TracedProcess>(new TracedProcess(pid));
}

TracedProcess::~TracedProcess() {
  if (reaped_) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (!reaped_) {
    const pid_t thread = WaitFor(-1, &status);
    reaped_ = thread < 0 || (thread == pid_ && !WIFSTOPPED(status));
    // A thread that stops once more before it dies.
    if (!reaped_ && WIFSTOPPED(status)) ::ptrace(PTRACE_CONT, thread, 0, 0);
  }
}

void TracedProcess::Signal(int signal_number) const {
  ::kill(pid_, signal_number);
}

bool TracedProcess::HasEnded() {
  int status = 0;
  if (!reaped_) reaped_ = WaitFor(pid_, &status, WNOHANG) == pid_;
  return reaped_;
}

absl::Status TracedProcess::Freeze() {
  if (HasEnded()) return HasEndedStatus();
  // A thread that runs may make another one, until all stand.
  for (bool found = true; found;) {
    found = false;
    for (const pid_t thread : ThreadsOf(pid_)) {
      if (in_group_stop_.count(thread) > 0) continue;
      found = true;
      absl::Status status = Seize(thread);
      if (!status.ok()) return status;
    }
  }
  if (in_group_stop_.count(pid_) == 0) {
    return absl::FailedPreconditionError(
        "the program's first thread has ended: it cannot be recorded");
  }
  return PrepareCalls();
}

absl::Status TracedProcess::Seize(pid_t thread) {
  if (::ptrace(PTRACE_SEIZE, thread, 0, kOptions) != 0) {
    if (errno == ESRCH) return absl::OkStatus();
    // It was made by one that is attached, and so is attached itself.
    int status = 0;
    const bool ours = errno == EPERM && WaitFor(thread, &status, WNOHANG) >= 0;
    if (!ours) {
      errno = EPERM;
      return PtraceError("attaching");
    }
    if (status != 0 && WIFSTOPPED(status) &&
        EventOf(status) == PTRACE_EVENT_STOP) {
      in_group_stop_[thread] = IsGroupStop(status);
      return absl::OkStatus();
    }
  } else if (::ptrace(PTRACE_INTERRUPT, thread, 0, 0) != 0) {
    return errno == ESRCH ? absl::OkStatus() : PtraceError("stopping");
  }
  const absl::StatusOr<bool> stands = AwaitStop(thread);
  return stands.status();
}

absl::StatusOr<bool> TracedProcess::AwaitStop(pid_t thread) {
  while (true) {
    int status = 0;
    if (WaitFor(thread, &status) < 0) {
      if (errno == ECHILD) return false;
      return PtraceError("waiting");
    }
    if (!WIFSTOPPED(status)) {
      if (thread == pid_) {
        reaped_ = true;
        return HasEndedStatus();
      }
      return false;
    }
    if (EventOf(status) == PTRACE_EVENT_STOP) {
      in_group_stop_[thread] = IsGroupStop(status);
      return true;
    }
    // Before its stop it takes what comes first.
    LetGoOn(thread, status);
  }
}

absl::Status TracedProcess::PrepareCalls() {
  if (::ptrace(PTRACE_GETREGS, pid_, 0, &registers_) != 0) {
    return PtraceError("reading registers");
  }
  if (registers_.cs != kCode64) {
    return absl::UnimplementedError("the program is not a 64-bit one");
  }
  const absl::StatusOr<uint64_t> found = FindSyscallInstruction(pid_);
  if (!found.ok()) return found.status();
  syscall_address_ = *found;
  if (::ptrace(PTRACE_GETSIGMASK, pid_, sizeof(signals_), &signals_) != 0) {
    return PtraceError("reading the signal mask");
  }
  uint64_t all = ~uint64_t{0};
  if (::ptrace(PTRACE_SETSIGMASK, pid_, sizeof(all), &all) != 0) {
    return PtraceError("blocking signals");
  }
  calling_ = true;
  return absl::OkStatus();
}

absl::Status TracedProcess::Step() {
  while (true) {
    if (::ptrace(PTRACE_SYSCALL, pid_, 0, 0) != 0) {
      return PtraceError("a system call");
    }
    int status = 0;
    if (WaitFor(pid_, &status) < 0) return PtraceError("waiting for a call");
    if (!WIFSTOPPED(status)) {
      reaped_ = true;
      return HasEndedStatus();
    }
    if (WSTOPSIG(status) == kSyscallStop) return absl::OkStatus();
  }
}

absl::StatusOr<int64_t> TracedProcess::Call(
    int64_t number, const std::array<uint64_t, 6>& arguments) {
  user_regs_struct call = registers_;
  call.rip = syscall_address_;
  call.rax = static_cast<uint64_t>(number);
  // No call was interrupted that the kernel should begin again.
  call.orig_rax = ~uint64_t{0};
  call.rdi = arguments[0];
  call.rsi = arguments[1];
  call.rdx = arguments[2];
  call.r10 = arguments[3];
  call.r8 = arguments[4];
  call.r9 = arguments[5];
  if (::ptrace(PTRACE_SETREGS, pid_, 0, &call) != 0) {
    return PtraceError("setting registers");
  }
  absl::Status status = Step();      // into it
  if (status.ok()) status = Step();  // and out
  if (!status.ok()) return status;
  if (::ptrace(PTRACE_GETREGS, pid_, 0, &call) != 0) {
    return PtraceError("reading a result");
  }
  return static_cast<int64_t>(call.rax);
}

absl::Status TracedProcess::FinishCalls() {
  // Only on its way out of a stop like the first does the kernel look whether
  // the call that Freeze interrupted is to begin again.
  if (::ptrace(PTRACE_INTERRUPT, pid_, 0, 0) != 0 ||
      ::ptrace(PTRACE_CONT, pid_, 0, 0) != 0) {
    return PtraceError("after a system call");
  }
  const bool was_in_group_stop = in_group_stop_[pid_];
  const absl::StatusOr<bool> stands = AwaitStop(pid_);
  if (!stands.ok()) return stands.status();
  in_group_stop_[pid_] = was_in_group_stop;
  if (::ptrace(PTRACE_SETREGS, pid_, 0, &registers_) != 0 ||
      ::ptrace(PTRACE_SETSIGMASK, pid_, sizeof(signals_), &signals_) != 0) {
    return PtraceError("restoring registers");
  }
  calling_ = false;
  return absl::OkStatus();
}

absl::Status TracedProcess::Thaw() {
  if (calling_) {
    absl::Status status = FinishCalls();
    if (!status.ok()) return status;
  }
  for (const auto& [thread, in_group_stop] : in_group_stop_) {
    // One that was killed meanwhile need not go on.
    if (::ptrace(in_group_stop ? PTRACE_LISTEN : PTRACE_CONT, thread, 0, 0) !=
            0 &&
        errno != ESRCH) {
      return PtraceError("going on");
    }
  }
  in_group_stop_.clear();
  return absl::OkStatus();
}

bool TracedProcess::IsOwn(pid_t thread) const {
  return ::access(absl::StrCat("/proc/", pid_, "/task/", thread).c_str(),
                  F_OK) == 0;
}

void TracedProcess::KillForked(pid_t child) {
  forked_ = true;
  ::kill(child, SIGKILL);
  ::kill(pid_, SIGKILL);
}

void TracedProcess::LetGoOn(pid_t thread, int status) {
  int signal = 0;
  switch (EventOf(status)) {
    case 0:
      signal = WSTOPSIG(status) == kSyscallStop ? 0 : WSTOPSIG(status);
      break;
    case PTRACE_EVENT_STOP:
      if (!IsGroupStop(status)) break;
      ::ptrace(PTRACE_LISTEN, thread, 0, 0);
      return;
    case PTRACE_EVENT_FORK:
    case PTRACE_EVENT_CLONE: {
      unsigned long made = 0;
      ::ptrace(PTRACE_GETEVENTMSG, thread, 0, &made);
      const auto child = static_cast<pid_t>(made);
      if (!IsOwn(child)) KillForked(child);
      break;
    }
    default:
      break;
  }
  // Fails for one that has been killed, of which the next wait tells.
  ::ptrace(PTRACE_CONT, thread, 0, signal);
}

absl::StatusOr<int> TracedProcess::Wait() {
  int status = 0;
  while (!reaped_) {
    const pid_t thread = WaitFor(-1, &status);
    if (thread < 0) return PtraceError("waiting");
    if (WIFSTOPPED(status)) {
      LetGoOn(thread, status);
    } else {
      reaped_ = thread == pid_;
    }
  }
  if (!forked_) return status;
  return absl::FailedPreconditionError(
      "the program forked and was ended: pages that it has not touched yet "
      "would be zeros in its child. Record one that does not fork, or later "
      "(--after)");
}

}  // namespace postcopy
