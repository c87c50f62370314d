// capacity: how long it takes to move a fleet, and what is the bottleneck.
// docs/capacity.md has the model and what comes of it.

#include <cstdint>
#include <cstdio>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "cmd/capacity/capacity_report.h"
#include "cmd/capacity/scenario.h"
#include "cmd/capacity/simulation.h"
#include "dirtytrack/types.h"

using postcopy::ByteCount;

ABSL_FLAG(uint32_t, vms, 1, "VMs to move; spread evenly over the sources");
ABSL_FLAG(uint32_t, source_hosts, 1, "hosts that are evacuated");
ABSL_FLAG(uint32_t, destination_hosts, 1, "hosts that take them");
ABSL_FLAG(double, link_gbit, 25, "link of each host, gigabits per second");
ABSL_FLAG(double, uplink_gbit, 0,
          "what all sources can send together; 0: no bottleneck");
ABSL_FLAG(uint32_t, migrations_max, 8, "migrations at a time, for each host");
ABSL_FLAG(double, service_cpus, 4, "CPUs that the daemons of a host may use");
ABSL_FLAG(ByteCount, ram, ByteCount(16ull << 30), "RAM of a VM");
ABSL_FLAG(double, zero_fraction, 0.3, "of it, holes and zeros");
ABSL_FLAG(ByteCount, hot_set, ByteCount(2ull << 30),
          "what a VM writes again and again");
ABSL_FLAG(ByteCount, write_rate, ByteCount(100 << 20),
          "bytes of pages that it writes there per second");
ABSL_FLAG(ByteCount, cold_write_rate, ByteCount(1 << 20), "and elsewhere");
ABSL_FLAG(double, vcpus, 4, "vCPUs of a VM");
ABSL_FLAG(double, spread, 0.5, "how much larger or smaller VMs are: 0 to 0.99");
ABSL_FLAG(ByteCount, bandwidth, ByteCount(0),
          "bulk limit of each migration per second; 0: none");
ABSL_FLAG(double, wire_fraction, 1,
          "page bytes on the wire: 0.5 if zstd halves");
ABSL_FLAG(double, source_cpu_s_per_gib, 0,
          "CPU seconds at a source for a GiB; 0: as measured");
ABSL_FLAG(double, destination_cpu_s_per_gib, 0, "and at a destination");
ABSL_FLAG(uint64_t, seed, 1, "of the sizes of VMs");
ABSL_FLAG(std::string, output, "table", "table or json");

namespace {

double Bytes(const ByteCount& count) {
  return static_cast<double>(count.value());
}

postcopy::capacity::Scenario ScenarioOfFlags() {
  constexpr double kBytesPerGbit = 1e9 / 8;
  postcopy::capacity::Scenario s;
  s.vms = absl::GetFlag(FLAGS_vms);
  s.source_hosts = absl::GetFlag(FLAGS_source_hosts);
  s.destination_hosts = absl::GetFlag(FLAGS_destination_hosts);
  s.uplink_bytes_per_s = absl::GetFlag(FLAGS_uplink_gbit) * kBytesPerGbit;
  s.host.link_bytes_per_s = absl::GetFlag(FLAGS_link_gbit) * kBytesPerGbit;
  s.host.migrations_max = absl::GetFlag(FLAGS_migrations_max);
  s.host.service_cpus = absl::GetFlag(FLAGS_service_cpus);
  s.vm.ram_bytes = Bytes(absl::GetFlag(FLAGS_ram));
  s.vm.zero_fraction = absl::GetFlag(FLAGS_zero_fraction);
  s.vm.hot_bytes = Bytes(absl::GetFlag(FLAGS_hot_set));
  s.vm.hot_write_bytes_per_s = Bytes(absl::GetFlag(FLAGS_write_rate));
  s.vm.cold_write_bytes_per_s = Bytes(absl::GetFlag(FLAGS_cold_write_rate));
  s.vm.vcpus = absl::GetFlag(FLAGS_vcpus);
  s.vm.spread = absl::GetFlag(FLAGS_spread);
  s.vm.bulk_limit_bytes_per_s = Bytes(absl::GetFlag(FLAGS_bandwidth));
  s.costs.wire_fraction = absl::GetFlag(FLAGS_wire_fraction);
  if (const double cost = absl::GetFlag(FLAGS_source_cpu_s_per_gib);
      cost != 0) {
    s.costs.source_cpu_s_per_gib = cost;
  }
  if (const double cost = absl::GetFlag(FLAGS_destination_cpu_s_per_gib);
      cost != 0) {
    s.costs.destination_cpu_s_per_gib = cost;
  }
  s.seed = absl::GetFlag(FLAGS_seed);
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  namespace capacity = postcopy::capacity;
  absl::SetProgramUsageMessage("how long moving a fleet of VMs takes");
  absl::ParseCommandLine(argc, argv);
  const std::string output = absl::GetFlag(FLAGS_output);
  if (output != "table" && output != "json") {
    std::fprintf(stderr, "error: --output must be table or json\n");
    return 2;
  }
  const capacity::Scenario scenario = ScenarioOfFlags();
  const auto outcome = capacity::Simulate(scenario);
  if (!outcome.ok()) {
    const std::string message(outcome.status().message());
    std::fprintf(stderr, "error: %s\n", message.c_str());
    return 2;
  }
  const std::string text = output == "json"
                               ? capacity::OutcomeJson(scenario, *outcome)
                               : capacity::OutcomeTable(scenario, *outcome);
  std::fputs(text.c_str(), stdout);
  return 0;
}
