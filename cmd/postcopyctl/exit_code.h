// The exit codes of postcopyctl, as --help lists them.
#ifndef CMD_POSTCOPYCTL_EXIT_CODE_H_
#define CMD_POSTCOPYCTL_EXIT_CODE_H_

#include "absl/status/status.h"

namespace postcopy {

enum class ExitCode : int {
  kOk = 0,
  kFailed = 1,
  kUsage = 2,
  kUnreachable = 3,
  // A precondition does not hold (no such VM or migration, id taken, wrong
  // state), or the time is over.
  kPrecondition = 4,
};

// INVALID_ARGUMENT is kFailed: usage errors are found before anything is sent,
// so it is a daemon that refused.
inline ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return ExitCode::kOk;
    case absl::StatusCode::kUnavailable:
      return ExitCode::kUnreachable;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kDeadlineExceeded:
      return ExitCode::kPrecondition;
    default:
      return ExitCode::kFailed;
  }
}

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_EXIT_CODE_H_
