#include "cmd/daemon/observation_flags.h"

#include "absl/flags/flag.h"
#include "cmd/metrics/metrics_server.h"

ABSL_FLAG(bool, channelz, false,
          "serve channelz at the control plane, which shows the process's gRPC "
          "connections");
ABSL_FLAG(std::string, log_level, "info",
          "least severity that is logged: error, warning, notice, info or "
          "debug");

namespace postcopy {

FlagCheck LogLevelCheck() {
  return {"log_level", [] {
            return ParseLogSeverity(absl::GetFlag(FLAGS_log_level)).status();
          }};
}

LogSeverity LogLevelFlag() {
  return *ParseLogSeverity(absl::GetFlag(FLAGS_log_level));
}

bool ChannelzFlag() { return absl::GetFlag(FLAGS_channelz); }

absl::Status CheckMetricsFlag(const std::string& address) {
  return address.empty() ? absl::OkStatus() : CheckMetricsAddress(address);
}

}  // namespace postcopy
