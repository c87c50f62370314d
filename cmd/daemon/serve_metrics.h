// A daemon's metrics, if it is to have any.
#ifndef CMD_DAEMON_SERVE_METRICS_H_
#define CMD_DAEMON_SERVE_METRICS_H_

#include <memory>
#include <string>

#include "cmd/log/daemon_log.h"
#include "cmd/metrics/metrics_server.h"

namespace postcopy {

// Serves what `collect` adds, and what the process and its log count, at
// `address`; null if that is empty. Null also, with an error in the log, if it
// cannot be had: a daemon that is started again while guests wait for pages
// must not fail for the sake of its metrics. `log` outlives the result.
// REQUIRES: `address` is empty or CheckMetricsAddress(address).ok().
std::unique_ptr<MetricsServer> ServeMetrics(const std::string& address,
                                            DaemonLog* log,
                                            MetricsServer::Collect collect);

}  // namespace postcopy

#endif  // CMD_DAEMON_SERVE_METRICS_H_
