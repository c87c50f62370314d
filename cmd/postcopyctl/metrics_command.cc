// metrics: what the daemons count, as Prometheus gets it.

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/metrics/http_get.h"
#include "cmd/postcopyctl/command.h"

namespace postcopy {
namespace {

// Unless --timeout is shorter: a daemon answers from memory.
constexpr absl::Duration kMetricsTimeout = absl::Seconds(10);

}  // namespace

absl::Status ValidateMetrics(const Options& options) {
  if (options.output == "json") {
    return absl::InvalidArgumentError(
        "metrics are printed in Prometheus' text format: --output=json does "
        "not apply");
  }
  return CheckAnyAddress(options);
}

absl::Status RunMetrics(const CommandContext& context) {
  const Options& options = context.options;
  absl::Status result;
  for (const auto& [side, address] :
       {std::pair<const char*, const std::string&>("source", options.source),
        {"destination", options.destination}}) {
    if (address.empty()) continue;
    const absl::StatusOr<std::string> text = HttpGet(
        address, "/metrics", std::min(options.timeout, kMetricsTimeout));
    if (text.ok()) {
      *context.out << "# " << side << " " << address << "\n" << *text;
    }
    result.Update(text.status());
  }
  return result;
}

}  // namespace postcopy
