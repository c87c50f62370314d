#include "tests/fault_proxy.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/status/status.h"
#include "cmd/faultreplay/loopback.h"

namespace postcopy {
namespace {

constexpr size_t kBufferBytes = 256 << 10;
// Smaller reads are more likely to be framing than pages.
constexpr ssize_t kLargeRead = 16 << 10;

}  // namespace

absl::StatusOr<std::unique_ptr<FaultProxy>> FaultProxy::Create(
    const std::string& upstream) {
  const uint16_t upstream_port = PortOf(upstream);
  if (upstream_port == 0) {
    return absl::InvalidArgumentError("upstream must be host:port");
  }
  uint16_t port;
  absl::StatusOr<UniqueFd> listener = ListenOnLoopback(&port);
  if (!listener.ok()) return listener.status();
  return std::unique_ptr<FaultProxy>(
      new FaultProxy(*std::move(listener), UniqueFd(::eventfd(0, EFD_CLOEXEC)),
                     LoopbackAddress(port), upstream_port));
}

FaultProxy::FaultProxy(UniqueFd listener, UniqueFd wake, std::string address,
                       uint16_t upstream_port)
    : listener_(std::move(listener)),
      wake_(std::move(wake)),
      address_(std::move(address)),
      upstream_port_(upstream_port),
      buffer_(kBufferBytes),
      thread_([this] { Run(); }) {}

FaultProxy::~FaultProxy() {
  stop_.store(true);
  Cut();
  thread_.join();
}

void FaultProxy::Cut() {
  cut_.store(true);
  const uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof(one)) < 0) return;
}

void FaultProxy::Accept() {
  UniqueFd client = AcceptConnection(listener_.get());
  if (!client.valid() || refuse_.load()) return;
  absl::StatusOr<UniqueFd> server = ConnectToLoopback(upstream_port_);
  if (!server.ok()) return;
  pairs_.push_back({std::move(client), *std::move(server)});
}

bool FaultProxy::Pass(int from, int to, bool from_server) {
  const ssize_t n = ::recv(from, buffer_.data(), buffer_.size(), 0);
  if (n < 0 && errno == EINTR) return true;
  if (n <= 0) return false;
  if (from_server) {
    bytes_from_server_.fetch_add(static_cast<uint64_t>(n));
    if (n >= kLargeRead && damage_.load() > 0) {
      damage_.fetch_sub(1);
      buffer_[static_cast<size_t>(n) / 2] ^= 0x10;
    }
  }
  return SendAll(to, buffer_.data(), static_cast<size_t>(n));
}

void FaultProxy::Run() {
  while (!stop_.load()) {
    std::vector<pollfd> fds = {{wake_.get(), POLLIN, 0},
                               {listener_.get(), POLLIN, 0}};
    for (const Pair& pair : pairs_) {
      fds.push_back({pair.client.get(), POLLIN, 0});
      fds.push_back({pair.server.get(), POLLIN, 0});
    }
    if (::poll(fds.data(), fds.size(), -1) < 0) continue;
    if (fds[0].revents != 0) {
      uint64_t count = 0;
      if (::read(wake_.get(), &count, sizeof(count)) < 0) continue;
    }
    if (cut_.exchange(false)) {
      pairs_.clear();
      continue;
    }
    for (size_t i = pairs_.size(); i-- > 0;) {
      const Pair& pair = pairs_[i];
      bool alive = true;
      if (fds[2 + 2 * i].revents != 0) {
        alive = Pass(pair.client.get(), pair.server.get(), false);
      }
      if (alive && fds[3 + 2 * i].revents != 0) {
        alive = Pass(pair.server.get(), pair.client.get(), true);
      }
      if (!alive) pairs_.erase(pairs_.begin() + static_cast<ssize_t>(i));
    }
    if (fds[1].revents != 0) Accept();
  }
}

}  // namespace postcopy
