#include "cmd/faultreplay/loopback.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

sockaddr_in AddressOf(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

void SetNoDelay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

}  // namespace

absl::StatusOr<UniqueFd> ListenOnLoopback(uint16_t* port) {
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = AddressOf(0);
  socklen_t length = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (!listener.valid() || ::bind(listener.get(), generic, length) != 0 ||
      ::listen(listener.get(), SOMAXCONN) != 0 ||
      ::getsockname(listener.get(), generic, &length) != 0) {
    return absl::ErrnoToStatus(errno, "cannot listen on loopback");
  }
  *port = ntohs(address.sin_port);
  return listener;
}

absl::StatusOr<UniqueFd> ConnectToLoopback(uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = AddressOf(port);
  if (!fd.valid() || ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address),
                               sizeof(address)) != 0) {
    return absl::ErrnoToStatus(errno, "cannot connect on loopback");
  }
  SetNoDelay(fd.get());
  return fd;
}

UniqueFd AcceptConnection(int listener) {
  UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (fd.valid()) SetNoDelay(fd.get());
  return fd;
}

std::string LoopbackAddress(uint16_t port) {
  return absl::StrCat("127.0.0.1:", port);
}

uint16_t PortOf(const std::string& address) {
  uint32_t port = 0;
  const bool good =
      absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port);
  return good && port <= UINT16_MAX ? static_cast<uint16_t>(port) : 0;
}

bool SendAll(int fd, const void* bytes, size_t length) {
  const auto* at = static_cast<const char*>(bytes);
  while (length > 0) {
    const ssize_t n = ::send(fd, at, length, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    length -= static_cast<size_t>(n);
  }
  return true;
}

bool ReceiveAll(int fd, void* bytes, size_t length) {
  auto* at = static_cast<char*>(bytes);
  while (length > 0) {
    const ssize_t n = ::recv(fd, at, length, MSG_WAITALL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    length -= static_cast<size_t>(n);
  }
  return true;
}

}  // namespace postcopy
