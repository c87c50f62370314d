#include "cmd/capacity/capacity_report.h"

#include "absl/strings/str_format.h"

namespace postcopy::capacity {
namespace {

constexpr double kMib = 1u << 20;
constexpr double kGib = 1u << 30;

double GoodputMibPerS(const Outcome& outcome) {
  return outcome.seconds > 0 ? outcome.moved_bytes / kMib / outcome.seconds : 0;
}

}  // namespace

std::string OutcomeTable(const Scenario& scenario, const Outcome& outcome) {
  return absl::StrFormat(
      "VMs              %d, from %d hosts to %d\n"
      "time             %.1f s\n"
      "one migration    p50 %.1f s, p99 %.1f s\n"
      "downtime         p50 %.1f ms, p99 %.1f ms\n"
      "moved            %.1f GiB at %.0f MiB/s, of which %.2f GiB by faults\n"
      "source           link %.0f%%, CPU %.0f%%\n"
      "destination      link %.0f%%, CPU %.0f%%\n"
      "uplink           %.0f%%\n"
      "bottleneck       %s\n",
      scenario.vms, scenario.source_hosts, scenario.destination_hosts,
      outcome.seconds, outcome.migration_s_p50, outcome.migration_s_p99,
      outcome.downtime_s_p50 * 1e3, outcome.downtime_s_p99 * 1e3,
      outcome.moved_bytes / kGib, GoodputMibPerS(outcome),
      outcome.faulted_bytes / kGib, outcome.source_link * 100,
      outcome.source_cpu * 100, outcome.destination_link * 100,
      outcome.destination_cpu * 100, outcome.uplink * 100,
      BottleneckOf(outcome));
}

std::string OutcomeJson(const Scenario& scenario, const Outcome& outcome) {
  return absl::StrFormat(
      R"({"vms":%d,"source_hosts":%d,"destination_hosts":%d,"seed":%d,)"
      R"("seconds":%.3f,"migration_s_p50":%.3f,"migration_s_p99":%.3f,)"
      R"("downtime_s_p50":%.6f,"downtime_s_p99":%.6f,"moved_bytes":%.0f,)"
      R"("faulted_bytes":%.0f,"source_link":%.3f,"source_cpu":%.3f,)"
      R"("destination_link":%.3f,"destination_cpu":%.3f,"uplink":%.3f,)"
      R"("bottleneck":"%s"})"
      "\n",
      scenario.vms, scenario.source_hosts, scenario.destination_hosts,
      scenario.seed, outcome.seconds, outcome.migration_s_p50,
      outcome.migration_s_p99, outcome.downtime_s_p50, outcome.downtime_s_p99,
      outcome.moved_bytes, outcome.faulted_bytes, outcome.source_link,
      outcome.source_cpu, outcome.destination_link, outcome.destination_cpu,
      outcome.uplink, BottleneckOf(outcome));
}

}  // namespace postcopy::capacity
