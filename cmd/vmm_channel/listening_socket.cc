#include "cmd/vmm_channel/listening_socket.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "cmd/vmm_channel/packet_socket.h"

namespace postcopy {
namespace {

absl::Status SystemError(absl::string_view what, int error) {
  const std::string message = absl::StrCat(what, ": ", std::strerror(error));
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOENT:
    case ENOTDIR:
      return absl::FailedPreconditionError(message);
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::Status AnotherListens(absl::string_view path) {
  return absl::FailedPreconditionError(absl::StrCat(
      "another daemon listens on ", path, "; stop it or choose another path"));
}

// Makes sure that of all daemons only this one touches the socket at `path`.
// The lock ends with the descriptor. Its file stays, since removing it would
// let a third daemon lock a new one beside the second.
absl::StatusOr<UniqueFd> LockPath(const std::string& path) {
  const std::string lock_path = path + ".lock";
  UniqueFd lock(::open(lock_path.c_str(),
                       O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return SystemError(lock_path, errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return AnotherListens(path);
    return SystemError(lock_path, errno);
  }
  return lock;
}

UniqueFd NewSocket(int type) {
  return UniqueFd(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// Removes the socket of a dead daemon. Not an error if there is none.
absl::Status RemoveStale(const std::string& path, const sockaddr_un& address,
                         int type) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : SystemError(path, errno);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " is there and is no socket; remove it or choose another path"));
  }
  UniqueFd probe = NewSocket(type);
  if (!probe.valid()) return SystemError("socket", errno);
  const int result =
      ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address),
                sizeof(address));
  // Only a socket that nobody listens on refuses; any other answer, a socket
  // of another type or a full backlog included, comes from somebody alive.
  if (result == 0 || errno != ECONNREFUSED) return AnotherListens(path);
  if (::unlink(path.c_str()) != 0) return SystemError(path, errno);
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> Listen(const std::string& path,
                                const sockaddr_un& address, int type) {
  absl::Status removed = RemoveStale(path, address, type);
  if (!removed.ok()) return removed;
  UniqueFd fd = NewSocket(type);
  if (!fd.valid()) return SystemError("socket", errno);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address),
             sizeof(address)) != 0) {
    return SystemError(path, errno);
  }
  // Nobody can connect before listen(), so the mode is right from the start.
  if (::chmod(path.c_str(), 0660) != 0 || ::listen(fd.get(), SOMAXCONN) != 0) {
    return SystemError(path, errno);
  }
  return fd;
}

// The value of an option, or -1.
int OptionOf(int fd, int option) {
  int value = -1;
  socklen_t length = sizeof(value);
  if (::getsockopt(fd, SOL_SOCKET, option, &value, &length) != 0) return -1;
  return value;
}

bool IsAllowed(uid_t uid, absl::Span<const uid_t> allowed_uids) {
  if (allowed_uids.empty()) return uid == 0 || uid == ::geteuid();
  return std::find(allowed_uids.begin(), allowed_uids.end(), uid) !=
         allowed_uids.end();
}

}  // namespace

absl::StatusOr<ListeningSocket> ListeningSocket::Create(std::string path,
                                                        int type) {
  // Checked before the lock file is made.
  absl::StatusOr<sockaddr_un> address = UnixAddress(path);
  if (!address.ok()) return address.status();
  absl::StatusOr<UniqueFd> lock = LockPath(path);
  if (!lock.ok()) return lock.status();
  absl::StatusOr<UniqueFd> socket = Listen(path, *address, type);
  if (!socket.ok()) return socket.status();
  return ListeningSocket(std::move(path), *std::move(lock), *std::move(socket));
}

absl::StatusOr<ListeningSocket> ListeningSocket::Adopt(UniqueFd socket,
                                                       int type) {
  const int fd = socket.get();
  if (OptionOf(fd, SO_DOMAIN) != AF_UNIX || OptionOf(fd, SO_TYPE) != type ||
      OptionOf(fd, SO_ACCEPTCONN) != 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the socket that was passed to this daemon is not a Unix socket that ",
        "listens for ", type == SOCK_SEQPACKET ? "packets" : "streams",
        ": its socket unit must say ",
        type == SOCK_SEQPACKET ? "ListenSequentialPacket=" : "ListenStream=",
        " and Accept=no"));
  }
  if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 ||
      ::fcntl(fd, F_SETFL, O_NONBLOCK) != 0) {
    return SystemError("the socket that was passed to this daemon", errno);
  }
  return ListeningSocket("", UniqueFd(), std::move(socket));
}

absl::StatusOr<ListeningSocket> ListeningSocket::Open(int inherited,
                                                      std::string path,
                                                      int type) {
  if (inherited >= 0) return Adopt(UniqueFd(inherited), type);
  return Create(std::move(path), type);
}

ListeningSocket& ListeningSocket::operator=(ListeningSocket&& other) noexcept {
  Close();
  path_ = std::move(other.path_);
  lock_ = std::move(other.lock_);
  socket_ = std::move(other.socket_);
  return *this;
}

void ListeningSocket::Close() {
  // Without a listening socket the file belongs to somebody else.
  if (socket_.valid() && !path_.empty()) ::unlink(path_.c_str());
  socket_.Reset();
  lock_.Reset();
}

absl::StatusOr<ucred> CheckPeer(int fd, absl::Span<const uid_t> allowed_uids,
                                absl::string_view deed) {
  ucred peer = {};
  socklen_t length = sizeof(peer);
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return absl::PermissionDeniedError(
        "the daemon cannot tell which user the peer runs as");
  }
  if (IsAllowed(peer.uid, allowed_uids)) return peer;
  return absl::PermissionDeniedError(
      absl::StrCat("user ", peer.uid, " may not ", deed,
                   "; add it to the daemon's allowed user ids"));
}

}  // namespace postcopy
