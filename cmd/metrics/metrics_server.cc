#include "cmd/metrics/metrics_server.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>

#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

class Collector final : public prometheus::Collectable {
 public:
  explicit Collector(MetricsServer::Collect collect)
      : collect_(std::move(collect)) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    MetricFamilies families;
    collect_(families);
    return families.Take();
  }

 private:
  const MetricsServer::Collect collect_;
};

std::vector<std::string> ServerOptions(const std::string& address) {
  return {"listening_ports",    address,
          "num_threads",        absl::StrCat(MetricsServer::kThreads),
          "request_timeout_ms", absl::StrCat(MetricsServer::kTimeoutMillis),
          "enable_keep_alive",  "no"};
}

}  // namespace

absl::Status CheckMetricsAddress(absl::string_view address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  // A comma would make it a list, and a letter behind the port an option.
  if (colon != absl::string_view::npos && colon > 0 &&
      address.find_first_of(", ") == absl::string_view::npos &&
      absl::SimpleAtoi(address.substr(colon + 1), &port) && port <= 65535) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--metrics_address=", address, " must be host:port, or empty for none"));
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Create(
    const std::string& address, Collect collect) {
  if (absl::Status s = CheckMetricsAddress(address); !s.ok()) return s;
  auto collectable = std::make_shared<Collector>(std::move(collect));
  std::unique_ptr<prometheus::Exposer> exposer;
  // The library says so what it cannot do.
  try {
    exposer = std::make_unique<prometheus::Exposer>(ServerOptions(address));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("metrics: cannot listen on ", address, ": is the port ",
                     "taken by another process, or the address not one of ",
                     "this host? (", error.what(), ")"));
  }
  exposer->RegisterCollectable(collectable);
  const std::vector<int> ports = exposer->GetListeningPorts();
  std::string real = address;
  if (!ports.empty()) {
    real = absl::StrCat(address.substr(0, address.rfind(':')), ":", ports[0]);
  }
  return std::unique_ptr<MetricsServer>(new MetricsServer(
      std::move(collectable), std::move(exposer), std::move(real)));
}

MetricsServer::MetricsServer(
    std::shared_ptr<prometheus::Collectable> collectable,
    std::unique_ptr<prometheus::Exposer> exposer, std::string address)
    : collectable_(std::move(collectable)),
      exposer_(std::move(exposer)),
      address_(std::move(address)) {}

MetricsServer::~MetricsServer() = default;

}  // namespace postcopy
