// TCP sockets on this host.
#ifndef CMD_FAULTREPLAY_LOOPBACK_H_
#define CMD_FAULTREPLAY_LOOPBACK_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// A listening socket at a port of the kernel's choice, which `port` gets.
absl::StatusOr<UniqueFd> ListenOnLoopback(uint16_t* port);

// Without Nagle's delay.
absl::StatusOr<UniqueFd> ConnectToLoopback(uint16_t port);

// The next connection, without Nagle's delay; invalid if there is none.
UniqueFd AcceptConnection(int listener);

// "127.0.0.1:PORT" and back; 0 if it cannot be read.
std::string LoopbackAddress(uint16_t port);
uint16_t PortOf(const std::string& address);

// All of it; false if the connection has ended.
bool SendAll(int fd, const void* bytes, size_t length);
bool ReceiveAll(int fd, void* bytes, size_t length);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_LOOPBACK_H_
