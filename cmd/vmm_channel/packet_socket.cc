#include "cmd/vmm_channel/packet_socket.h"

#include <google/protobuf/message_lite.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "cmd/vmm_channel/descriptors.h"
#include "cmd/vmm_channel/wire_status.h"

namespace postcopy {
namespace {

// Room for one SCM_RIGHTS with kMaxDescriptors, aligned as the kernel wants.
union ControlBuffer {
  cmsghdr align;
  char bytes[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
};
// The kernel hands out as many descriptors as fit; with no room to spare, one
// too many always shows as MSG_CTRUNC.
static_assert(CMSG_SPACE(kMaxDescriptors * sizeof(int)) ==
              CMSG_LEN(kMaxDescriptors * sizeof(int)));

void PutDescriptors(absl::Span<const int> fds, ControlBuffer& buffer,
                    msghdr& header) {
  if (fds.empty()) return;
  header.msg_control = buffer.bytes;
  header.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
  cmsghdr* control = CMSG_FIRSTHDR(&header);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
  std::memcpy(CMSG_DATA(control), fds.data(), fds.size() * sizeof(int));
}

absl::Status CheckSendable(size_t bytes, size_t fds) {
  if (bytes == 0) {
    return absl::InvalidArgumentError(
        "an empty packet cannot be sent: it would count as closing");
  }
  if (bytes > kMaxPacketBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a packet of ", bytes, " bytes cannot be sent: at most ",
                     kMaxPacketBytes, " are allowed"));
  }
  if (fds > kMaxDescriptors) {
    return absl::InvalidArgumentError(
        absl::StrCat(fds, " descriptors cannot be sent with one packet: at ",
                     "most ", kMaxDescriptors, " are allowed"));
  }
  return absl::OkStatus();
}

bool IsRetry(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

}  // namespace

absl::Status PacketSocket::Send(absl::string_view bytes,
                                absl::Span<const int> fds, Deadline deadline) {
  if (absl::Status status = CheckSendable(bytes.size(), fds.size());
      !status.ok()) {
    return status;
  }
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  ControlBuffer control = {};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  PutDescriptors(fds, control, header);
  for (;;) {
    if (::sendmsg(fd(), &header, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) {
      return absl::OkStatus();
    }
    if (errno == EINTR) continue;
    if (!IsRetry(errno)) return Failure("sending to", errno);
    if (absl::Status status = Wait(POLLOUT, deadline); !status.ok()) {
      return status;
    }
  }
}

absl::Status PacketSocket::Send(const google::protobuf::MessageLite& message,
                                absl::Span<const int> fds, Deadline deadline) {
  const size_t size = message.ByteSizeLong();
  if (absl::Status status = CheckSendable(size, fds.size()); !status.ok()) {
    return status;
  }
  std::string bytes;
  if (!message.SerializeToString(&bytes)) {
    return absl::InternalError("a message could not be serialised");
  }
  return Send(bytes, fds, deadline);
}

absl::StatusOr<Packet> PacketSocket::Receive(Deadline deadline) {
  Packet packet;
  packet.bytes.resize(kMaxPacketBytes);
  iovec part{packet.bytes.data(), packet.bytes.size()};
  for (;;) {
    ControlBuffer control = {};
    msghdr header = {};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.bytes;
    header.msg_controllen = sizeof(control.bytes);
    const ssize_t received =
        ::recvmsg(fd(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (received < 0) {
      if (errno == EINTR) continue;
      if (!IsRetry(errno)) return Failure("receiving from", errno);
      if (absl::Status status = Wait(POLLIN, deadline); !status.ok()) {
        return status;
      }
      continue;
    }
    // Before anything is judged, so that they are closed on every way out.
    packet.fds = TakeDescriptors(header);
    if (received == 0) {
      return absl::UnavailableError(
          absl::StrCat(peer_, " closed the connection"));
    }
    if ((header.msg_flags & MSG_TRUNC) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(peer_, " sent a packet of more than ", kMaxPacketBytes,
                       " bytes; send less at once"));
    }
    if ((header.msg_flags & MSG_CTRUNC) != 0) {
      // The kernel says the same if this process may open no more files.
      return absl::InvalidArgumentError(absl::StrCat(
          peer_, " sent more than ", kMaxDescriptors,
          " descriptors beside one packet, or the receiver's limit on open ",
          "files is reached"));
    }
    packet.bytes.resize(static_cast<size_t>(received));
    return packet;
  }
}

bool PacketSocket::readable() const {
  pollfd entry{fd(), POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

bool PacketSocket::closed() const {
  pollfd entry{fd(), POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) == 1;
}

void PacketSocket::Close() { ::shutdown(fd(), SHUT_RDWR); }

void PacketSocket::CloseAfterSending() {
  // From here on nothing more comes, so that the loop ends.
  ::shutdown(fd(), SHUT_RD);
  msghdr nothing = {};
  ssize_t dropped;
  do {
    // MSG_TRUNC: returns the packet's length, though none of it is read; the
    // kernel closes descriptors for which there is no room.
    dropped = ::recvmsg(fd(), &nothing, MSG_DONTWAIT | MSG_TRUNC);
  } while (dropped > 0 || (dropped < 0 && errno == EINTR));
  Close();
}

absl::Status PacketSocket::Wait(short events, Deadline deadline) const {
  pollfd entry{fd(), events, 0};
  for (;;) {
    const int ready = ::poll(&entry, 1, deadline.PollMillis());
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return Failure("waiting for", errno);
    if (deadline.passed()) {
      return absl::DeadlineExceededError(
          absl::StrCat(peer_, " did not answer in time"));
    }
  }
}

absl::Status PacketSocket::Failure(absl::string_view what, int error) const {
  switch (error) {
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN:
      return absl::UnavailableError(
          absl::StrCat(peer_, " closed the connection"));
    case ENOMEM:
    case ENOBUFS:
    case ETOOMANYREFS:
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(
          absl::StrCat(what, " ", peer_, ": ", std::strerror(error)));
    default:
      return absl::InternalError(
          absl::StrCat(what, " ", peer_, ": ", std::strerror(error)));
  }
}

absl::StatusOr<sockaddr_un> UnixAddress(absl::string_view path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        "the socket path is empty or contains a NUL");
  }
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the socket path ", Printable(path), " has ", path.size(),
                     " bytes; Unix sockets allow ",
                     sizeof(address.sun_path) - 1, ": choose a shorter one"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

}  // namespace postcopy
