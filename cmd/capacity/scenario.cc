#include "cmd/capacity/scenario.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy::capacity {
namespace {

absl::Status CheckCount(const char* name, uint32_t count, uint32_t max) {
  if (count >= 1 && count <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " must be 1 to ", max, ", not ", count));
}

// NaN is none of these.
absl::Status CheckPositive(const char* name, double value) {
  if (value > 0 && value < 1e18) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " must be more than 0, not ", value));
}

absl::Status CheckNotNegative(const char* name, double value) {
  if (value >= 0 && value < 1e18) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " must be 0 or more, not ", value));
}

absl::Status CheckFraction(const char* name, double value, double max) {
  if (value >= 0 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " must be 0 to ", max, ", not ", value));
}

}  // namespace

absl::Status CheckScenario(const Scenario& s) {
  absl::Status status = CheckCount("vms", s.vms, kVmsMax);
  status.Update(CheckCount("source_hosts", s.source_hosts, kHostsMax));
  status.Update(
      CheckCount("destination_hosts", s.destination_hosts, kHostsMax));
  status.Update(CheckCount("migrations_max", s.host.migrations_max, kVmsMax));
  for (const auto& [name, value] :
       {std::pair<const char*, double>("ram", s.vm.ram_bytes),
        {"hot_set", s.vm.hot_bytes},
        {"vcpus", s.vm.vcpus},
        {"link", s.host.link_bytes_per_s},
        {"service_cpus", s.host.service_cpus},
        {"stream_max", s.costs.stream_bytes_per_s_max},
        {"fault_latency", s.costs.fault_latency_s},
        {"wire_fraction", s.costs.wire_fraction},
        {"link_fraction", s.costs.link_fraction}}) {
    status.Update(CheckPositive(name, value));
  }
  for (const auto& [name, value] :
       {std::pair<const char*, double>("write_rate",
                                       s.vm.hot_write_bytes_per_s),
        {"cold_write_rate", s.vm.cold_write_bytes_per_s},
        {"bandwidth", s.vm.bulk_limit_bytes_per_s},
        {"uplink", s.uplink_bytes_per_s},
        {"source_cpu_s_per_gib", s.costs.source_cpu_s_per_gib},
        {"destination_cpu_s_per_gib", s.costs.destination_cpu_s_per_gib},
        {"advice_delay", s.costs.advice_delay_s},
        {"downtime", s.costs.downtime_s},
        {"discard_s_per_page", s.costs.discard_s_per_page}}) {
    status.Update(CheckNotNegative(name, value));
  }
  status.Update(CheckFraction("zero_fraction", s.vm.zero_fraction, 1));
  // A VM has some RAM.
  status.Update(CheckFraction("spread", s.vm.spread, 0.99));
  if (status.ok() && s.vm.hot_bytes > s.vm.ram_bytes) {
    status = absl::InvalidArgumentError("hot_set is larger than ram");
  }
  return status;
}

}  // namespace postcopy::capacity
