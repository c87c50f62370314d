// Where Prometheus scrapes a daemon.
#ifndef CMD_METRICS_METRICS_SERVER_H_
#define CMD_METRICS_METRICS_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/metrics/metric_families.h"

namespace prometheus {
class Exposer;
class Collectable;
}  // namespace prometheus

namespace postcopy {

// INVALID_ARGUMENT unless `address` is host:port.
absl::Status CheckMetricsAddress(absl::string_view address);

// Answers GET /metrics over plain HTTP, to anybody who can connect. Two threads
// of its own; nothing is done between scrapes.
class MetricsServer {
 public:
  // Threads, so scrapes at a time; one more waits.
  static constexpr int kThreads = 2;
  // How long a peer may take to say what it wants, and to take the answer.
  static constexpr int kTimeoutMillis = 5000;

  // Adds all metrics of the daemon; called for each scrape, by several threads
  // at a time.
  using Collect = std::function<void(MetricFamilies&)>;

  // Listens at host:port; port 0 lets the kernel choose. UNAVAILABLE, with what
  // to do, if that cannot be had.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Create(
      const std::string& address, Collect collect);

  // When it returns, no Collect runs.
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  // With the real port.
  const std::string& address() const { return address_; }

 private:
  MetricsServer(std::shared_ptr<prometheus::Collectable> collectable,
                std::unique_ptr<prometheus::Exposer> exposer,
                std::string address);

  const std::shared_ptr<prometheus::Collectable> collectable_;
  const std::unique_ptr<prometheus::Exposer> exposer_;
  const std::string address_;
};

}  // namespace postcopy

#endif  // CMD_METRICS_METRICS_SERVER_H_
