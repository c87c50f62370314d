// A Unix socket whose peers are known before they are listened to.
#ifndef CMD_DAEMON_UNIX_DOOR_H_
#define CMD_DAEMON_UNIX_DOOR_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/vmm_channel/accept_loop.h"
#include "cmd/vmm_channel/deadline.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Passes on connections of users that may connect, and closes the others
// before a byte of them is read. One thread of its own, which makes the calls.
class UnixDoor final : private AcceptLoop::Handler {
 public:
  struct Options {
    std::string path;
    // Empty: root and the user this process runs as.
    std::vector<uid_t> allowed_uids;
    // The connection does not block and is close-on-exec.
    std::function<void(UniqueFd)> let_in;
    // Gets a sentence when somebody was turned away, at most one a second.
    std::function<void(const std::string&)> log = [](const std::string&) {};
  };

  // Listens when it returns. Errors as of ListeningSocket::Create.
  static absl::StatusOr<std::unique_ptr<UnixDoor>> Create(Options options);
  ~UnixDoor() override { Stop(); }

  // Lets nobody in any more, and removes the socket. Idempotent.
  void Stop() { loop_.Stop(); }

 private:
  explicit UnixDoor(Options options) : options_(std::move(options)) {}

  void OnConnection(UniqueFd fd) override;
  void OnReady(uint64_t /*id*/) override {}
  Deadline NextDeadline() const override { return Deadline::Infinite(); }
  void OnDeadline() override {}
  void OnStop() override {}
  void Complain(const absl::Status& status);

  const Options options_;
  // Of the thread: when the next sentence may come, and how many were not
  // said since the last one.
  Deadline quiet_until_ = Deadline::After(absl::ZeroDuration());
  uint64_t unsaid_ = 0;
  AcceptLoop loop_{this};
};

}  // namespace postcopy

#endif  // CMD_DAEMON_UNIX_DOOR_H_
