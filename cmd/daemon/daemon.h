// What a daemon's main() does beside its work: signals, and saying that it is
// ready.
#ifndef CMD_DAEMON_DAEMON_H_
#define CMD_DAEMON_DAEMON_H_

#include <signal.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace postcopy {

// What a daemon is told by: SIGINT, SIGTERM, SIGHUP.
sigset_t DaemonSignals();

// As BlockEndSignals, for DaemonSignals and Serve.
void BlockDaemonSignals();

// Blocks SIGINT and SIGTERM for the calling thread and those it starts, so that
// WaitForEnd gets them; ignores SIGPIPE and SIGXFSZ, so that a peer that has
// gone, and a file that may not grow, are errors of who writes. To be called
// before any thread.
void BlockEndSignals();

// Returns when SIGINT or SIGTERM comes.
void WaitForEnd();

// Writes one line of JSON with these string fields to descriptor `fd`, which
// whoever started the daemon reads, and closes it. Does nothing if `fd` is
// negative. FAILED_PRECONDITION if it cannot be written.
absl::Status TellReady(
    int fd, const std::vector<std::pair<std::string, std::string>>& fields);

// Splits "0,1000" into user ids. INVALID_ARGUMENT names what is none.
absl::StatusOr<std::vector<unsigned>> ParseUids(absl::string_view text);

// INVALID_ARGUMENT unless 0 < timeout < inf.
absl::Status CheckTimeout(absl::Duration timeout);

// INVALID_ARGUMENT unless 0 <= timeout <= inf.
absl::Status CheckDrainTimeout(absl::Duration timeout);

// "error: <message>" on stderr; returns `exit_code`.
int FailWith(const absl::Status& status, int exit_code);

}  // namespace postcopy

#endif  // CMD_DAEMON_DAEMON_H_
