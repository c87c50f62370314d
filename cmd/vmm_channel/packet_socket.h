// One end of a Unix SEQPACKET socket on which each packet is one protobuf
// message with descriptors beside it.
#ifndef CMD_VMM_CHANNEL_PACKET_SOCKET_H_
#define CMD_VMM_CHANNEL_PACKET_SOCKET_H_

#include <sys/un.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cmd/vmm_channel/deadline.h"
#include "dirtytrack/unique_fd.h"

namespace google::protobuf {
class MessageLite;
}  // namespace google::protobuf

namespace postcopy {

// What one packet may carry, in either direction.
inline constexpr size_t kMaxPacketBytes = 64 * 1024;
inline constexpr size_t kMaxDescriptors = 66;

// A packet as it came. Whoever holds it holds its descriptors.
struct Packet {
  std::string bytes;
  std::vector<UniqueFd> fds;
};

// Owns a connected SEQPACKET socket. Sending and receiving are each for one
// thread at a time; Close is for any thread. Never raises SIGPIPE.
//
// Errors of both directions: UNAVAILABLE if the peer has closed (its text
// names the peer), DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED if the kernel has no
// memory or descriptors for it, else INTERNAL.
class PacketSocket {
 public:
  // Holds nothing.
  PacketSocket() = default;
  // `peer` is what messages call the other end: "the VMM", "the daemon".
  PacketSocket(UniqueFd socket, std::string peer)
      : socket_(std::move(socket)), peer_(std::move(peer)) {}

  // Sends one packet; the descriptors stay the caller's. A packet goes whole
  // or not at all. Also INVALID_ARGUMENT if it is empty or beyond a limit.
  absl::Status Send(absl::string_view bytes, absl::Span<const int> fds,
                    Deadline deadline);
  absl::Status Send(const google::protobuf::MessageLite& message,
                    absl::Span<const int> fds, Deadline deadline);

  // Waits for one packet. Its descriptors are close-on-exec. A packet beyond
  // a limit is INVALID_ARGUMENT, and is gone; none of its descriptors stays
  // open. A packet of no bytes counts as closing: no message is empty.
  absl::StatusOr<Packet> Receive(Deadline deadline);

  // True if Receive would not wait: a packet is there, or the end.
  bool readable() const;
  // True if the peer has closed, or Close was called. Packets that came before
  // can still be received.
  bool closed() const;

  // Ends the connection for both ends and wakes who waits in Send or Receive.
  // The descriptor stays open, so no other file takes its number meanwhile.
  // Async-signal-safe.
  void Close();

  // Ends the connection so that the peer still reads what was sent: a Unix
  // socket closed with unread packets in it would have the peer's next receive
  // fail instead. Unread packets are dropped without a look.
  void CloseAfterSending();

  int fd() const { return socket_.get(); }

 private:
  // Waits for `events`; DEADLINE_EXCEEDED.
  absl::Status Wait(short events, Deadline deadline) const;
  absl::Status Failure(absl::string_view what, int error) const;

  UniqueFd socket_;
  std::string peer_;
};

// The address of the socket at `path`; INVALID_ARGUMENT if it is empty or does
// not fit (sun_path holds 107 bytes and a NUL).
absl::StatusOr<sockaddr_un> UnixAddress(absl::string_view path);

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_PACKET_SOCKET_H_
