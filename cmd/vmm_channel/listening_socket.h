// A Unix socket at a path that one daemon at a time listens on, and who
// connects to it.
#ifndef CMD_VMM_CHANNEL_LISTENING_SOCKET_H_
#define CMD_VMM_CHANNEL_LISTENING_SOCKET_H_

#include <sys/socket.h>
#include <sys/types.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Owns a listening socket, its file and the lock beside it. Not thread-safe.
class ListeningSocket {
 public:
  // Holds nothing.
  ListeningSocket() = default;
  ListeningSocket(ListeningSocket&&) noexcept = default;
  // Closes what it holds first.
  ListeningSocket& operator=(ListeningSocket&& other) noexcept;
  ~ListeningSocket() { Close(); }

  // Listens at `path`, at most 107 bytes; when it returns, peers can connect.
  // `type` is SOCK_STREAM or SOCK_SEQPACKET. The socket has mode 0660, is
  // close-on-exec and does not block. Beside it lies a lock file,
  // "<path>.lock". A socket file that a dead daemon has left is replaced.
  // Errors: INVALID_ARGUMENT for the path; FAILED_PRECONDITION if another
  // daemon listens there, or if what is there is no socket; else what the
  // kernel said.
  static absl::StatusOr<ListeningSocket> Create(std::string path, int type);

  // Takes over a Unix socket that listens already: whoever made it, a service
  // manager, keeps its file, and others from using it. It becomes
  // close-on-exec and does not block. FAILED_PRECONDITION if it is no listening
  // Unix socket of `type`; then it is closed.
  static absl::StatusOr<ListeningSocket> Adopt(UniqueFd socket, int type);

  // Adopts descriptor `inherited`, or creates if that is negative.
  static absl::StatusOr<ListeningSocket> Open(int inherited, std::string path,
                                              int type);

  int fd() const { return socket_.get(); }

  // Listens no longer, removes the socket file that Create made and lets go of
  // the lock. Later calls do nothing.
  void Close();

 private:
  ListeningSocket(std::string path, UniqueFd lock, UniqueFd socket)
      : path_(std::move(path)),
        lock_(std::move(lock)),
        socket_(std::move(socket)) {}

  std::string path_;  // empty: adopted
  UniqueFd lock_;
  UniqueFd socket_;
};

// Who was at the other end of the connected Unix socket `fd` when it
// connected: user, group, and process (0 if it is in a PID namespace that this
// process does not see). PERMISSION_DENIED unless its user is one of
// `allowed_uids`; empty means root and the user this process runs as. `deed` is
// what the message says that it may not do.
absl::StatusOr<ucred> CheckPeer(int fd, absl::Span<const uid_t> allowed_uids,
                                absl::string_view deed = "attach VMs");

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_LISTENING_SOCKET_H_
