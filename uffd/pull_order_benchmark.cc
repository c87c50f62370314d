// How many faults a guest has under each order of the background, in the
// simulation of pull_order_simulation.h: the same numbers each time. The time
// shown is that of the simulation, most of it spent in the order.
//
//   Faults/<trace>/<order>
//
//   faults       touches of pages that were not there
//   guest_ms     until the guest had touched all it would
//   complete_ms  until no page was missing

#include <cstdint>
#include <string>
#include <utility>

#include "benchmark/benchmark.h"
#include "uffd/policy_pull_order.h"
#include "uffd/pull_order_simulation.h"

namespace postcopy {
namespace {

constexpr uint64_t kSeed = 1;

constexpr std::pair<const char*, PullOrderKind> kOrders[] = {
    {"linear", PullOrderKind::kLinear},
    {"after fault", PullOrderKind::kAfterFault},
    {"around faults", PullOrderKind::kAroundFaults},
    {"recently dirtied", PullOrderKind::kRecentlyDirtied},
    {"adaptive", PullOrderKind::kAdaptive},
};

void Faults(benchmark::State& state, const GuestTrace& trace,
            PullOrderKind kind) {
  SimulatedPull result;
  for (auto _ : state) result = SimulatePull(kind, trace);
  state.counters["faults"] = static_cast<double>(result.faults);
  state.counters["guest_ms"] = static_cast<double>(result.guest_us) / 1000;
  state.counters["complete_ms"] =
      static_cast<double>(result.complete_us) / 1000;
}

const bool kRegistered = [] {
  for (const GuestTrace& trace : GuestTraces(kSeed)) {
    for (const auto& [name, kind] : kOrders) {
      benchmark::RegisterBenchmark(
          ("Faults/" + trace.name + "/" + name).c_str(),
          [trace, kind = kind](benchmark::State& state) {
            Faults(state, trace, kind);
          })
          ->Unit(benchmark::kMillisecond)
          ->Iterations(1);
    }
  }
  return true;
}();

}  // namespace
}  // namespace postcopy
