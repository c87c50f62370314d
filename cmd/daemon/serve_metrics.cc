#include "cmd/daemon/serve_metrics.h"

#include <utility>

#include "cmd/log/log.h"
#include "cmd/metrics/metric_families.h"
#include "cmd/metrics/process_metrics.h"

namespace postcopy {
namespace {

void AddLogMetrics(const DaemonLog& log, MetricFamilies& families) {
  families.Counter("postcopy_log_lines_total", "Lines taken for the log.",
                   static_cast<double>(log.written()));
  families.Counter("postcopy_log_lines_dropped_total",
                   "Lines dropped because the log is written too slowly.",
                   static_cast<double>(log.dropped()));
}

}  // namespace

std::unique_ptr<MetricsServer> ServeMetrics(const std::string& address,
                                            DaemonLog* log,
                                            MetricsServer::Collect collect) {
  if (address.empty()) return nullptr;
  auto server = MetricsServer::Create(
      address, [log, collect = std::move(collect)](MetricFamilies& families) {
        collect(families);
        AddLogMetrics(*log, families);
        AddProcessMetrics(families);
      });
  if (server.ok()) return *std::move(server);
  WriteTo(log, LogSeverity::kError, std::string(server.status().message()));
  return nullptr;
}

}  // namespace postcopy
