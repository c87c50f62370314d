// What the capacity simulator is told: machines, VMs, costs.
#ifndef CMD_CAPACITY_SCENARIO_H_
#define CMD_CAPACITY_SCENARIO_H_

#include <cstdint>

#include "absl/status/status.h"

namespace postcopy::capacity {

// A simulation of more would take minutes and say no more.
inline constexpr uint32_t kVmsMax = 10'000;
inline constexpr uint32_t kHostsMax = 1'000;

// Quantities are bytes, bytes per second and seconds, all as double: this is a
// model of flows, not of pages.

// The VMs of a fleet: each is drawn between `spread` below and above.
struct VmSpec {
  double ram_bytes = 16.0 * (1u << 30);
  // Of the RAM: holes and zeros, which cost nothing to move.
  double zero_fraction = 0.3;
  // What is written again and again, uniformly, and how fast.
  double hot_bytes = 2.0 * (1u << 30);
  double hot_write_bytes_per_s = 100.0 * (1u << 20);
  // What is written once and stays, elsewhere.
  double cold_write_bytes_per_s = 1.0 * (1u << 20);
  double vcpus = 4;
  // Bulk limit of each migration (--bandwidth); 0: none.
  double bulk_limit_bytes_per_s = 0;
  // 0 to 1: RAM, hot set and write rates are multiplied by one factor, uniform
  // in [1 - spread, 1 + spread].
  double spread = 0;
};

// A source or a destination; all are alike.
struct HostSpec {
  double link_bytes_per_s = 25e9 / 8;
  // CPUs that the daemons may use.
  double service_cpus = 4;
  // Migrations at a time to or from it; more wait.
  uint32_t migrations_max = 8;
};

// What this service costs. docs/capacity.md has where the defaults come from.
struct Costs {
  // CPU seconds for a GiB moved over the bulk lane, at each end.
  double source_cpu_s_per_gib = 0.6;
  double destination_cpu_s_per_gib = 0.9;
  // One migration's stream, on idle machines.
  double stream_bytes_per_s_max = 1.2 * (1u << 30);
  // From the advice to the guest's pause: whoever drives asks now and then.
  double advice_delay_s = 0.1;
  // A guest stands still for this much, and this much for each stale page.
  double downtime_s = 5e-3;
  double discard_s_per_page = 0.5e-6;
  // A fault of a vCPU over the network.
  double fault_latency_s = 200e-6;
  // Of page bytes on the wire: 1 without compression.
  double wire_fraction = 1;
  // What of a link is left for pages: framing, other traffic.
  double link_fraction = 0.94;
};

// All VMs of the source hosts are moved to the destinations, as many at a time
// as the hosts take.
struct Scenario {
  uint32_t vms = 1;
  uint32_t source_hosts = 1;
  uint32_t destination_hosts = 1;
  // Of the rack that is evacuated: what all its hosts can send out together;
  // 0: no bottleneck.
  double uplink_bytes_per_s = 0;
  VmSpec vm;
  HostSpec host;
  Costs costs;
  uint64_t seed = 1;
};

// INVALID_ARGUMENT names what makes no sense.
absl::Status CheckScenario(const Scenario& scenario);

}  // namespace postcopy::capacity

#endif  // CMD_CAPACITY_SCENARIO_H_
