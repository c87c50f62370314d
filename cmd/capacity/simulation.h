// Moves a fleet, on paper.
#ifndef CMD_CAPACITY_SIMULATION_H_
#define CMD_CAPACITY_SIMULATION_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cmd/capacity/scenario.h"
#include "cmd/capacity/vm_flow.h"

namespace postcopy::capacity {

struct Outcome {
  // In the order of their ends.
  std::vector<VmOutcome> vms;
  double seconds = 0;
  // How busy each kind of resource was on average, 0 to 1; hosts of a kind
  // taken together.
  double source_link = 0;
  double destination_link = 0;
  double source_cpu = 0;
  double destination_cpu = 0;
  double uplink = 0;
  // Of `vms`; percentiles by nearest rank.
  double downtime_s_p50 = 0;
  double downtime_s_p99 = 0;
  double migration_s_p50 = 0;
  double migration_s_p99 = 0;
  double moved_bytes = 0;
  double faulted_bytes = 0;
};

// The errors of CheckScenario. The same scenario has the same outcome, to the
// bit.
absl::StatusOr<Outcome> Simulate(const Scenario& scenario);

// The resource that was busiest: where more would help.
std::string BottleneckOf(const Outcome& outcome);

}  // namespace postcopy::capacity

#endif  // CMD_CAPACITY_SIMULATION_H_
