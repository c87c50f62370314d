#include "cmd/process/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <ios>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "dirtytrack/check.h"

// Newer than the headers of the oldest glibc we build with.
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

namespace postcopy {
namespace {

// A killed process is gone at once unless it hangs in the kernel.
constexpr absl::Duration kKillWait = absl::Seconds(10);
constexpr std::streamoff kTailBytesMax = 64 * 1024;

// <sys/pidfd.h> of glibc 2.36 lacks extern "C", so its functions do not link.
int PidfdOpen(pid_t pid) {
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
}
int PidfdSendSignal(int pidfd, int number) {
  return static_cast<int>(
      ::syscall(SYS_pidfd_send_signal, pidfd, number, nullptr, 0));
}

absl::Status ErrnoStatus(int error, absl::string_view what) {
  return absl::ErrnoToStatus(error, what);
}

// Everything the child needs between fork() and exec(), prepared before:
// with other threads about, the child may not even allocate.
struct ExecPlan {
  std::vector<char*> argv;
  std::vector<int> inherited;
  UniqueFd stdin_fd;
  UniqueFd stdout_fd;  // Invalid: shared with the parent. Also below.
  UniqueFd stderr_fd;
  UniqueFd error_fd;  // Takes the errno if exec() cannot be reached.
  pid_t parent = 0;
};

// Async-signal-safe from here to RunPlan().
[[noreturn]] void ReportAndExit(const ExecPlan& plan) {
  int error = errno;
  ssize_t ignored = ::write(plan.error_fd.get(), &error, sizeof(error));
  (void)ignored;
  ::_exit(127);
}

void ResetSignals() {
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  // exec() resets handlers but keeps what is ignored.
  for (int number : {SIGPIPE, SIGXFSZ, SIGINT, SIGTERM, SIGHUP}) {
    ::signal(number, SIG_DFL);
  }
}

bool Redirect(const UniqueFd& from, int to) {
  return !from.valid() || ::dup2(from.get(), to) >= 0;
}

[[noreturn]] void RunPlan(const ExecPlan& plan) {
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) ReportAndExit(plan);
  // The parent may have died before the line above took effect.
  if (::getppid() != plan.parent) ::_exit(127);
  ::setpgid(0, 0);
  ResetSignals();
  if (!Redirect(plan.stdin_fd, STDIN_FILENO) ||
      !Redirect(plan.stdout_fd, STDOUT_FILENO) ||
      !Redirect(plan.stderr_fd, STDERR_FILENO)) {
    ReportAndExit(plan);
  }
  // Libraries do not open all their descriptors with O_CLOEXEC.
  if (::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) != 0) ReportAndExit(plan);
  for (int fd : plan.inherited) {
    if (::fcntl(fd, F_SETFD, 0) != 0) ReportAndExit(plan);
  }
  ::execv(plan.argv[0], plan.argv.data());
  ReportAndExit(plan);
}

absl::Status MakePipe(UniqueFd* read_end, UniqueFd* write_end) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe2");
  read_end->Reset(ends[0]);
  write_end->Reset(ends[1]);
  return absl::OkStatus();
}

absl::Status OpenOutput(const std::string& path, UniqueFd* fd) {
  if (path.empty()) return absl::OkStatus();
  // O_APPEND: stdout and stderr may be the same file.
  fd->Reset(::open(path.c_str(),
                   O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600));
  if (!fd->valid()) return ErrnoStatus(errno, absl::StrCat("open ", path));
  return absl::OkStatus();
}

absl::Status OpenStreams(const ChildOptions& options, ExecPlan* plan) {
  plan->stdin_fd.Reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!plan->stdin_fd.valid()) return ErrnoStatus(errno, "open /dev/null");
  absl::Status status = OpenOutput(options.stdout_path, &plan->stdout_fd);
  if (!status.ok()) return status;
  return OpenOutput(options.stderr_path, &plan->stderr_fd);
}

// Returns the error that kept the child from exec(), or OK once it is past it
// (which closes the other end of the pipe).
absl::Status AwaitExec(const UniqueFd& error_fd, const std::string& program) {
  int error = 0;
  ssize_t size;
  do {
    size = ::read(error_fd.get(), &error, sizeof(error));
  } while (size < 0 && errno == EINTR);
  if (size == 0) return absl::OkStatus();
  return ErrnoStatus(error, absl::StrCat("cannot run ", program));
}

std::string BaseName(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

class Deadline {
 public:
  explicit Deadline(absl::Duration timeout)
      : end_(std::chrono::steady_clock::now() +
             absl::ToChronoNanoseconds(
                 std::min(timeout, absl::Hours(24 * 365)))) {}

  // Whole milliseconds left, rounded up so that waiting never spins.
  int MillisLeft() const {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(
        end_ - std::chrono::steady_clock::now());
    return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1'000'000));
  }

 private:
  std::chrono::steady_clock::time_point end_;
};

// Waits until `fd` is readable or its other end is closed. False: timeout.
bool AwaitReadable(int fd, const Deadline& deadline) {
  pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};
  for (;;) {
    int left = deadline.MillisLeft();
    if (::poll(&entry, 1, left) > 0) return true;
    if (left == 0) return false;
  }
}

// Moves the first line of `text`, without its newline, to `line`.
bool TakeLine(std::string* text, std::string* line) {
  size_t end = text->find('\n');
  if (end == std::string::npos) return false;
  *line = text->substr(0, end);
  text->erase(0, end + 1);
  return true;
}

ExitStatus FromSiginfo(const siginfo_t& info) {
  if (info.si_code == CLD_EXITED) return {.code = info.si_status, .signal = 0};
  return {.code = -1, .signal = info.si_status};
}

}  // namespace

std::string ExitStatus::ToString() const {
  if (signal == 0) return absl::StrCat("exit code ", code);
  return absl::StrCat("signal ", signal, " (", ::strsignal(signal), ")");
}

absl::StatusOr<ChildProcess> ChildProcess::Start(const ChildOptions& options) {
  POSTCOPY_CHECK(!options.argv.empty());
  ChildProcess child;
  child.name_ = BaseName(options.argv[0]);
  ExecPlan plan;
  plan.parent = ::getpid();
  absl::Status status = OpenStreams(options, &plan);
  if (!status.ok()) return status;

  std::vector<std::string> arguments = options.argv;
  std::vector<UniqueFd> write_ends;
  for (const std::string& flag : options.pipe_flags) {
    status = MakePipe(&child.pipes_[flag].read_end, &write_ends.emplace_back());
    if (!status.ok()) return status;
    plan.inherited.push_back(write_ends.back().get());
    arguments.push_back(absl::StrCat(flag, "=", write_ends.back().get()));
  }
  for (std::string& argument : arguments) plan.argv.push_back(argument.data());
  plan.argv.push_back(nullptr);

  UniqueFd error_read;
  status = MakePipe(&error_read, &plan.error_fd);
  if (!status.ok()) return status;
  child.pid_ = ::fork();
  if (child.pid_ < 0) return ErrnoStatus(errno, "fork");
  if (child.pid_ == 0) RunPlan(plan);

  plan.error_fd.Reset();
  status = AwaitExec(error_read, options.argv[0]);
  // Nobody else reaps our children, so the pid is still this child's.
  child.pidfd_.Reset(PidfdOpen(child.pid_));
  if (!child.pidfd_.valid()) return ErrnoStatus(errno, "pidfd_open");
  if (!status.ok()) return status;
  return child;
}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  Kill();
  name_ = std::move(other.name_);
  pid_ = other.pid_;
  pidfd_ = std::move(other.pidfd_);
  pipes_ = std::move(other.pipes_);
  exit_status_ = other.exit_status_;
  return *this;
}

ChildProcess::~ChildProcess() { Kill(); }

void ChildProcess::Kill() {
  if (!pidfd_.valid() || exit_status_.has_value()) return;
  (void)Signal(SIGKILL);
  (void)Wait(kKillWait);
}

absl::StatusOr<std::string> ChildProcess::ReadLine(absl::string_view pipe_flag,
                                                   absl::Duration timeout) {
  auto entry = pipes_.find(std::string(pipe_flag));
  POSTCOPY_CHECK(entry != pipes_.end());
  Pipe& pipe = entry->second;
  Deadline deadline(timeout);
  std::string line;
  while (!TakeLine(&pipe.unread, &line)) {
    if (pipe.unread.size() > kChildLineBytesMax) {
      return absl::UnavailableError(
          absl::StrCat(name_, " wrote a line that is too long"));
    }
    if (!AwaitReadable(pipe.read_end.get(), deadline)) {
      return absl::DeadlineExceededError(absl::StrCat(
          name_, " wrote no line to ", pipe_flag, " within the time limit"));
    }
    char buffer[4096];
    ssize_t size = ::read(pipe.read_end.get(), buffer, sizeof(buffer));
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) {
      return absl::UnavailableError(
          absl::StrCat(name_, " closed ", pipe_flag, " without a whole line"));
    }
    pipe.unread.append(buffer, size);
  }
  return line;
}

absl::StatusOr<ExitStatus> ChildProcess::Wait(absl::Duration timeout) {
  if (exit_status_.has_value()) return *exit_status_;
  if (!AwaitReadable(pidfd_.get(), Deadline(timeout))) {
    return absl::DeadlineExceededError(absl::StrCat(name_, " still runs"));
  }
  siginfo_t info = {};
  if (::waitid(P_PIDFD, pidfd_.get(), &info, WEXITED) != 0) {
    return ErrnoStatus(errno, "waitid");
  }
  exit_status_ = FromSiginfo(info);
  return *exit_status_;
}

absl::Status ChildProcess::Signal(int signal_number) {
  if (exit_status_.has_value()) return absl::OkStatus();
  if (PidfdSendSignal(pidfd_.get(), signal_number) != 0 && errno != ESRCH) {
    return ErrnoStatus(errno, "pidfd_send_signal");
  }
  return absl::OkStatus();
}

absl::StatusOr<ExitStatus> ChildProcess::Terminate(absl::Duration grace) {
  absl::Status status = Signal(SIGTERM);
  if (!status.ok()) return status;
  absl::StatusOr<ExitStatus> ended = Wait(grace);
  if (ended.ok()) return ended;
  Kill();
  return absl::DeadlineExceededError(
      absl::StrCat(name_, " did not end when asked to and was killed"));
}

std::string TailOfFile(const std::string& path, size_t lines_max) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return "";
  std::streamoff size = file.tellg();
  std::streamoff start = std::max<std::streamoff>(0, size - kTailBytesMax);
  std::string text(size - start, '\0');
  file.seekg(start);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(file.gcount());
  absl::string_view rest = absl::StripSuffix(text, "\n");
  for (size_t lines = 0; lines < lines_max; ++lines) {
    size_t newline = rest.rfind('\n');
    if (newline == absl::string_view::npos) return text;
    rest = rest.substr(0, newline);
  }
  return text.substr(rest.size() + 1);
}

}  // namespace postcopy
