#include "cmd/daemon/daemon.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace postcopy {
namespace {

sigset_t EndSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

void BlockSignals(const sigset_t& set) {
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  // LimitFSIZE= then is EFBIG for who writes, not the end of every guest's
  // pages.
  signal(SIGXFSZ, SIG_IGN);
}

}  // namespace

sigset_t DaemonSignals() {
  sigset_t set = EndSignals();
  sigaddset(&set, SIGHUP);
  return set;
}

void BlockDaemonSignals() { BlockSignals(DaemonSignals()); }

void BlockEndSignals() { BlockSignals(EndSignals()); }

void WaitForEnd() {
  const sigset_t set = EndSignals();
  int which = 0;
  while (sigwait(&set, &which) != 0) {
  }
}

absl::Status TellReady(
    int fd, const std::vector<std::pair<std::string, std::string>>& fields) {
  if (fd < 0) return absl::OkStatus();
  std::string line = "{";
  for (const auto& [name, value] : fields) {
    absl::StrAppend(&line, line.size() > 1 ? "," : "", "\"", name, "\":\"",
                    value, "\"");
  }
  line += "}\n";
  // A line is shorter than PIPE_BUF: it is written whole or not at all.
  const ssize_t written = ::write(fd, line.data(), line.size());
  const int error = errno;
  ::close(fd);
  if (written == static_cast<ssize_t>(line.size())) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("cannot write to --ready_fd=", fd, ": ", strerror(error)));
}

absl::StatusOr<std::vector<unsigned>> ParseUids(absl::string_view text) {
  std::vector<unsigned> uids;
  for (absl::string_view piece : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    uint32_t uid = 0;
    if (!absl::SimpleAtoi(piece, &uid)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "\"", piece, "\" is no user id: give numbers, separated by commas"));
    }
    uids.push_back(uid);
  }
  return uids;
}

absl::Status CheckTimeout(absl::Duration timeout) {
  if (timeout > absl::ZeroDuration() && timeout < absl::InfiniteDuration()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "must be a time such as 10s, not ", absl::FormatDuration(timeout)));
}

absl::Status CheckDrainTimeout(absl::Duration timeout) {
  if (timeout >= absl::ZeroDuration()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("must be 0, a time such as 10m, or inf, not ",
                   absl::FormatDuration(timeout)));
}

int FailWith(const absl::Status& status, int exit_code) {
  const std::string message(status.message());
  std::fprintf(stderr, "error: %s\n", message.c_str());
  return exit_code;
}

}  // namespace postcopy
