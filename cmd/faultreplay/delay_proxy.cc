#include "cmd/faultreplay/delay_proxy.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "cmd/faultreplay/loopback.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

constexpr size_t kReadBytes = 64 << 10;
// How often the thread that accepts looks whether it is over.
constexpr int kPollMillis = 50;

}  // namespace

// One direction of one connection: a thread that receives and one that sends.
class DelayProxy::Direction {
 public:
  Direction(int from, int to, int64_t delay_ns)
      : from_(from),
        to_(to),
        delay_ns_(delay_ns),
        receiver_([this] { Receive(); }),
        sender_([this] { Send(); }) {}

  // REQUIRES: both descriptors were shut down.
  ~Direction() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = stopped_ = true;
      changed_.notify_all();
    }
    receiver_.join();
    sender_.join();
  }

 private:
  struct Piece {
    int64_t due_ns;
    std::string bytes;
  };

  void Receive() {
    std::string buffer(kReadBytes, '\0');
    while (true) {
      const ssize_t n = ::recv(from_, buffer.data(), buffer.size(), 0);
      if (n < 0 && errno == EINTR) continue;
      std::unique_lock lock(mutex_);
      if (n <= 0) {
        ended_ = true;
        changed_.notify_all();
        return;
      }
      changed_.wait(lock,
                    [this] { return bytes_ < kDelayedBytesMax || ended_; });
      bytes_ += static_cast<size_t>(n);
      pieces_.push_back({Clock::Monotonic()->NowNanos() + delay_ns_,
                         buffer.substr(0, static_cast<size_t>(n))});
      changed_.notify_all();
    }
  }

  void Send() {
    while (true) {
      Piece piece;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !pieces_.empty() || ended_; });
        if (pieces_.empty()) break;
        const int64_t left_ns =
            pieces_.front().due_ns - Clock::Monotonic()->NowNanos();
        if (changed_.wait_for(lock, std::chrono::nanoseconds(left_ns),
                              [this] { return stopped_; })) {
          break;
        }
        piece = std::move(pieces_.front());
        pieces_.pop_front();
        bytes_ -= piece.bytes.size();
        changed_.notify_all();
      }
      if (!SendAll(to_, piece.bytes.data(), piece.bytes.size())) break;
    }
    // The end passes on behind the bytes.
    ::shutdown(to_, SHUT_WR);
  }

  const int from_;
  const int to_;
  const int64_t delay_ns_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> pieces_;
  size_t bytes_ = 0;
  bool ended_ = false;
  bool stopped_ = false;  // what is on its way need not arrive
  std::thread receiver_;
  std::thread sender_;
};

absl::StatusOr<std::unique_ptr<DelayProxy>> DelayProxy::Create(
    const std::string& upstream, int64_t delay_ns) {
  uint16_t port;
  absl::StatusOr<UniqueFd> listener = ListenOnLoopback(&port);
  if (!listener.ok()) return listener.status();
  return std::unique_ptr<DelayProxy>(new DelayProxy(
      *std::move(listener), LoopbackAddress(port), PortOf(upstream), delay_ns));
}

DelayProxy::DelayProxy(UniqueFd listener, std::string address,
                       uint16_t upstream_port, int64_t delay_ns)
    : listener_(std::move(listener)),
      address_(std::move(address)),
      upstream_port_(upstream_port),
      delay_ns_(delay_ns),
      thread_([this] { Run(); }) {}

DelayProxy::~DelayProxy() {
  stop_.store(true);
  thread_.join();
  for (Connection& connection : connections_) {
    ::shutdown(connection.client.get(), SHUT_RDWR);
    ::shutdown(connection.server.get(), SHUT_RDWR);
    connection.directions.clear();
  }
}

void DelayProxy::Run() {
  while (!stop_.load()) {
    pollfd waited = {listener_.get(), POLLIN, 0};
    if (::poll(&waited, 1, kPollMillis) > 0) Accept();
  }
}

void DelayProxy::Accept() {
  UniqueFd client = AcceptConnection(listener_.get());
  absl::StatusOr<UniqueFd> server = ConnectToLoopback(upstream_port_);
  if (!client.valid() || !server.ok()) return;
  Connection& connection = connections_.emplace_back();
  connection.client = std::move(client);
  connection.server = *std::move(server);
  const int ends[] = {connection.client.get(), connection.server.get()};
  for (int from : {0, 1}) {
    connection.directions.push_back(
        std::make_unique<Direction>(ends[from], ends[1 - from], delay_ns_));
  }
}

}  // namespace postcopy
