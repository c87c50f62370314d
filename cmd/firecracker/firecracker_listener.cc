#include "cmd/firecracker/firecracker_listener.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "cmd/vmm_channel/accept_loop.h"
#include "cmd/vmm_channel/deadline.h"
#include "cmd/vmm_channel/descriptors.h"
#include "cmd/vmm_channel/listening_socket.h"

namespace postcopy {
namespace {

// Read at once. A handshake seldom has more.
constexpr size_t kReadBytes = 4096;

// Room for one SCM_RIGHTS with two descriptors, aligned as the kernel wants.
// Two, since alignment makes room for a second one anyway; a third shows as
// MSG_CTRUNC.
union ControlBuffer {
  cmsghdr align;
  char bytes[CMSG_SPACE(2 * sizeof(int))];
};

// What one recvmsg(2) brought.
struct Received {
  size_t bytes = 0;
  std::vector<UniqueFd> fds;
};

bool IsRetry(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

// Receives into `buffer` without waiting: 0 bytes if nothing is there.
// UNAVAILABLE at the end; INVALID_ARGUMENT for too many descriptors.
absl::StatusOr<Received> ReceiveSome(int fd, char (&buffer)[kReadBytes]) {
  iovec part{buffer, sizeof(buffer)};
  ControlBuffer control = {};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.bytes;
  header.msg_controllen = sizeof(control.bytes);
  const ssize_t bytes = ::recvmsg(fd, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (bytes < 0 && IsRetry(errno)) return Received();
  if (bytes < 0) {
    return absl::UnavailableError(
        absl::StrCat("receiving the handshake: ", std::strerror(errno)));
  }
  // Before anything is judged, so that they are closed on every way out.
  Received received{static_cast<size_t>(bytes), TakeDescriptors(header)};
  if ((header.msg_flags & MSG_CTRUNC) != 0) {
    // The kernel says the same if this process may open no more files.
    return absl::InvalidArgumentError(
        "too many descriptors came beside the handshake, or the receiver's "
        "limit on open files is reached; send the userfaultfd alone");
  }
  if (bytes == 0) {
    return absl::UnavailableError(
        "the VMM closed the connection before its handshake was whole");
  }
  return received;
}

// True if the peer has closed.
bool IsClosed(int fd) {
  pollfd entry{fd, POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) == 1;
}

// A peer that has connected and not yet sent all.
class Newcomer {
 public:
  Newcomer(UniqueFd socket, pid_t pid, Deadline deadline)
      : socket_(std::move(socket)), pid_(pid), deadline_(deadline) {}

  int fd() const { return socket_.get(); }
  Deadline deadline() const { return deadline_; }

  // Takes what has come. True once the handshake is whole; an error turns the
  // peer away.
  absl::StatusOr<bool> Receive();

  // What it has sent. REQUIRES: Receive returned true.
  absl::StatusOr<FirecrackerVm> TakeVm(uint64_t id);
  UniqueFd TakeSocket() { return std::move(socket_); }

 private:
  absl::Status TakeDescriptor(std::vector<UniqueFd> fds);

  UniqueFd socket_;
  pid_t pid_;
  Deadline deadline_;
  HandshakeScanner scanner_;
  // All that has come: at most kReadBytes more than the scanner has looked at.
  std::string bytes_;
  UniqueFd userfaultfd_;
};

absl::StatusOr<bool> Newcomer::Receive() {
  char buffer[kReadBytes];
  absl::StatusOr<Received> received = ReceiveSome(fd(), buffer);
  if (!received.ok()) return received.status();
  if (received->bytes == 0) return false;
  absl::Status status = TakeDescriptor(std::move(received->fds));
  if (!status.ok()) return status;
  const absl::string_view bytes(buffer, received->bytes);
  status = scanner_.Scan(bytes);
  if (!status.ok()) return status;
  bytes_.append(bytes.data(), bytes.size());
  return scanner_.complete();
}

absl::Status Newcomer::TakeDescriptor(std::vector<UniqueFd> fds) {
  if (bytes_.empty() && fds.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "descriptors beside the first bytes of the handshake: ", fds.size(),
        "; send one, the userfaultfd"));
  }
  if (!bytes_.empty() && !fds.empty()) {
    return absl::InvalidArgumentError(
        "a descriptor came beside later bytes of the handshake; send one, the "
        "userfaultfd, beside the first");
  }
  if (!fds.empty()) userfaultfd_ = std::move(fds.front());
  return absl::OkStatus();
}

absl::StatusOr<FirecrackerVm> Newcomer::TakeVm(uint64_t id) {
  absl::StatusOr<std::vector<FirecrackerRegion>> regions =
      ParseHandshake(absl::string_view(bytes_).substr(0, scanner_.bytes()));
  if (!regions.ok()) return regions.status();
  return FirecrackerVm{id, pid_, *std::move(regions), std::move(userfaultfd_)};
}

}  // namespace

// All of it belongs to the loop's thread while that runs.
class FirecrackerListener::Impl : private AcceptLoop::Handler {
 public:
  explicit Impl(Options options) : options_(std::move(options)) {}
  ~Impl() override { Shutdown(); }

  // Once, before anything else.
  absl::Status Start() {
    absl::StatusOr<ListeningSocket> listening = ListeningSocket::Open(
        options_.inherited_socket, options_.socket_path, SOCK_STREAM);
    if (!listening.ok()) return listening.status();
    return loop_.Start(*std::move(listening));
  }
  bool ShowsLife() { return loop_.ShowsLife(); }
  void Shutdown() { loop_.Stop(); }

 private:
  void OnConnection(UniqueFd fd) override;
  void OnReady(uint64_t id) override;
  Deadline NextDeadline() const override;
  void OnDeadline() override;
  void OnStop() override;

  void Refuse(const absl::Status& why);
  // Closes the connection of a newcomer.
  void TurnAway(uint64_t id, const absl::Status& why);

  void ReceiveHandshake(uint64_t id);
  absl::Status CheckRoom();
  absl::Status Attach(uint64_t id, Newcomer& newcomer);

  // Reads what an attached VM sends, which nobody wants, or sees its end.
  void Drain(uint64_t id);
  void Detach(uint64_t id);
  void DetachClosed();

  const Options options_;

  // By id, which rises: the first is the oldest.
  std::map<uint64_t, Newcomer> newcomers_;
  // The connections.
  std::map<uint64_t, UniqueFd> attached_;
  uint64_t next_id_ = AcceptLoop::kFirstId;

  // Last: its thread uses what is above.
  AcceptLoop loop_{this};
};

void FirecrackerListener::Impl::OnConnection(UniqueFd fd) {
  const absl::StatusOr<ucred> peer = CheckPeer(fd.get(), options_.allowed_uids);
  if (!peer.ok()) {
    fd.Reset();
    return Refuse(peer.status());
  }
  if (newcomers_.size() == kMaxUnfinishedHandshakes) {
    TurnAway(newcomers_.begin()->first,
             absl::ResourceExhaustedError(absl::StrCat(
                 "more than ", kMaxUnfinishedHandshakes, " VMMs have ",
                 "connected and not sent a whole handshake; send it as soon ",
                 "as connected")));
  }
  const uint64_t id = next_id_++;
  absl::Status status = loop_.Watch(fd.get(), id, EPOLLIN);
  if (!status.ok()) {
    fd.Reset();
    return Refuse(status);
  }
  newcomers_.emplace(id, Newcomer(std::move(fd), peer->pid,
                                  Deadline::After(options_.attach_timeout)));
}

void FirecrackerListener::Impl::OnReady(uint64_t id) {
  // An id whose peer went earlier in the same batch of events is in neither.
  if (newcomers_.count(id) != 0) {
    ReceiveHandshake(id);
  } else if (attached_.count(id) != 0) {
    Drain(id);
  }
}

Deadline FirecrackerListener::Impl::NextDeadline() const {
  return newcomers_.empty() ? Deadline::Infinite()
                            : newcomers_.begin()->second.deadline();
}

void FirecrackerListener::Impl::OnDeadline() {
  while (!newcomers_.empty() &&
         newcomers_.begin()->second.deadline().passed()) {
    TurnAway(newcomers_.begin()->first,
             absl::DeadlineExceededError(
                 absl::StrCat("no whole handshake came within ",
                              absl::FormatDuration(options_.attach_timeout))));
  }
}

void FirecrackerListener::Impl::OnStop() {
  while (!newcomers_.empty()) {
    TurnAway(newcomers_.begin()->first,
             absl::UnavailableError("the daemon is shutting down"));
  }
  while (!attached_.empty()) Detach(attached_.begin()->first);
}

void FirecrackerListener::Impl::Refuse(const absl::Status& why) {
  if (options_.on_refuse) options_.on_refuse(why);
}

void FirecrackerListener::Impl::TurnAway(uint64_t id, const absl::Status& why) {
  const auto found = newcomers_.find(id);
  loop_.Forget(found->second.fd());
  newcomers_.erase(found);
  Refuse(why);
}

void FirecrackerListener::Impl::ReceiveHandshake(uint64_t id) {
  Newcomer& newcomer = newcomers_.find(id)->second;
  const absl::StatusOr<bool> whole = newcomer.Receive();
  if (!whole.ok()) return TurnAway(id, whole.status());
  if (!*whole) return;
  if (absl::Status status = Attach(id, newcomer); !status.ok()) {
    return TurnAway(id, status);
  }
  attached_.emplace(id, newcomer.TakeSocket());
  newcomers_.erase(id);
}

absl::Status FirecrackerListener::Impl::CheckRoom() {
  // A VM that closes before another connects may be seen in the wrong order.
  if (attached_.size() >= options_.vms_max) DetachClosed();
  if (attached_.size() < options_.vms_max) return absl::OkStatus();
  return absl::ResourceExhaustedError(TooManyVms(attached_.size()));
}

absl::Status FirecrackerListener::Impl::Attach(uint64_t id,
                                               Newcomer& newcomer) {
  absl::StatusOr<FirecrackerVm> vm = newcomer.TakeVm(id);
  if (!vm.ok()) return vm.status();
  if (absl::Status room = CheckRoom(); !room.ok()) return room;
  return options_.on_attach ? options_.on_attach(*std::move(vm))
                            : absl::OkStatus();
}

void FirecrackerListener::Impl::Drain(uint64_t id) {
  char buffer[kReadBytes];
  // Descriptors for which there is no room are closed by the kernel.
  const ssize_t bytes = ::recv(attached_.find(id)->second.get(), buffer,
                               sizeof(buffer), MSG_DONTWAIT);
  if (bytes > 0 || (bytes < 0 && IsRetry(errno))) return;
  Detach(id);
}

void FirecrackerListener::Impl::Detach(uint64_t id) {
  auto node = attached_.extract(id);
  loop_.Forget(node.mapped().get());
  node.mapped().Reset();
  if (options_.on_detach) options_.on_detach(id);
}

void FirecrackerListener::Impl::DetachClosed() {
  std::vector<uint64_t> closed;
  for (const auto& [id, socket] : attached_) {
    if (IsClosed(socket.get())) closed.push_back(id);
  }
  for (const uint64_t id : closed) Detach(id);
}

FirecrackerListener::FirecrackerListener(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}

FirecrackerListener::~FirecrackerListener() = default;

absl::StatusOr<std::unique_ptr<FirecrackerListener>>
FirecrackerListener::Create(Options options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  if (absl::Status status = impl->Start(); !status.ok()) return status;
  return std::unique_ptr<FirecrackerListener>(
      new FirecrackerListener(std::move(impl)));
}

bool FirecrackerListener::ShowsLife() { return impl_->ShowsLife(); }

void FirecrackerListener::Shutdown() { impl_->Shutdown(); }

}  // namespace postcopy
