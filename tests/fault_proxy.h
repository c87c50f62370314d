// A network that fails on demand: a TCP proxy in this process.
#ifndef TESTS_FAULT_PROXY_H_
#define TESTS_FAULT_PROXY_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Passes bytes between clients on loopback and one server, and on demand cuts,
// refuses or damages them. One thread serves all connections. Thread-safe.
class FaultProxy {
 public:
  // Connections go on to `upstream` ("127.0.0.1:PORT").
  static absl::StatusOr<std::unique_ptr<FaultProxy>> Create(
      const std::string& upstream);
  ~FaultProxy();

  const std::string& address() const { return address_; }

  // Ends every connection; while `refuse` new ones are ended at once.
  void Cut();
  void SetRefuse(bool refuse) { refuse_.store(refuse); }

  // Flips one bit in the middle of the next `count` large reads that come from
  // the server: in the bytes of pages, in all likelihood.
  void Damage(int count) { damage_.store(count); }

  uint64_t bytes_from_server() const { return bytes_from_server_.load(); }

 private:
  struct Pair {
    UniqueFd client;
    UniqueFd server;
  };

  FaultProxy(UniqueFd listener, UniqueFd wake, std::string address,
             uint16_t upstream_port);
  void Run();
  void Accept();
  // False if the connection has ended.
  bool Pass(int from, int to, bool from_server);

  const UniqueFd listener_;
  const UniqueFd wake_;
  const std::string address_;
  const uint16_t upstream_port_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> refuse_{false};
  std::atomic<bool> cut_{false};
  std::atomic<int> damage_{0};
  std::atomic<uint64_t> bytes_from_server_{0};
  std::vector<Pair> pairs_;  // the thread's own
  std::vector<char> buffer_;
  std::thread thread_;
};

}  // namespace postcopy

#endif  // TESTS_FAULT_PROXY_H_
