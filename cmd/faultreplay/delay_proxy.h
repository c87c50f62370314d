// A network that takes its time: a TCP proxy in this process.
#ifndef CMD_FAULTREPLAY_DELAY_PROXY_H_
#define CMD_FAULTREPLAY_DELAY_PROXY_H_

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Bytes on their way in one direction of one connection, at most; who sends
// more waits, as a network's buffers would make it.
inline constexpr size_t kDelayedBytesMax = 8 << 20;

// Passes bytes between clients on loopback and one server; each byte leaves
// `delay_ns` after it came, in each direction, whatever is behind it. Two
// threads per direction and connection.
class DelayProxy {
 public:
  // `upstream` is "127.0.0.1:PORT".
  static absl::StatusOr<std::unique_ptr<DelayProxy>> Create(
      const std::string& upstream, int64_t delay_ns);
  // Ends all connections.
  ~DelayProxy();

  const std::string& address() const { return address_; }

 private:
  class Direction;
  struct Connection {
    UniqueFd client;
    UniqueFd server;
    std::vector<std::unique_ptr<Direction>> directions;
  };

  DelayProxy(UniqueFd listener, std::string address, uint16_t upstream_port,
             int64_t delay_ns);
  void Run();
  void Accept();

  const UniqueFd listener_;
  const std::string address_;
  const uint16_t upstream_port_;
  const int64_t delay_ns_;
  std::atomic<bool> stop_{false};
  std::list<Connection> connections_;  // of the thread
  std::thread thread_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_DELAY_PROXY_H_
