// A guest, its faults and a network, counted in steps instead of time: what an
// order of the background is worth.
#ifndef UFFD_PULL_ORDER_SIMULATION_H_
#define UFFD_PULL_ORDER_SIMULATION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "dirtytrack/types.h"
#include "uffd/policy_pull_order.h"

namespace postcopy {

// What a guest does after the switch-over, and what is known of it before.
struct GuestTrace {
  std::string name;
  PageCount pages;
  // The pages that each vCPU touches, one after the other.
  std::vector<std::vector<PageIndex>> vcpus;
  // The pages that are missing; empty: all.
  std::vector<PageRun> missing;
  // Told by the source.
  std::vector<PageRun> dirtied;
  // Recorded before.
  std::vector<PageRun> working_set;
};

// Of 64 Ki pages (256 MiB), the same for the same seed.
std::vector<GuestTrace> GuestTraces(uint64_t seed);

// In microseconds: about 10 Gbit/s and a round trip of 100 us.
struct SimulatedLink {
  int64_t page_us = 4;
  int64_t round_trip_us = 100;
  // From one touch of a vCPU to its next.
  int64_t touch_us = 20;
};

struct SimulatedPull {
  // Touches of pages that were not there.
  uint64_t faults = 0;
  // When the guest had touched all it would; when the last page had come.
  int64_t guest_us = 0;
  int64_t complete_us = 0;
  // Pages asked for over the bulk lane, and those among them that were asked
  // for on that lane before.
  uint64_t asked = 0;
  uint64_t asked_again = 0;
};

// A guest that begins to run when the background begins to fetch.
SimulatedPull SimulatePull(PullOrderKind kind, const GuestTrace& trace,
                           SimulatedLink link = {});

}  // namespace postcopy

#endif  // UFFD_PULL_ORDER_SIMULATION_H_
