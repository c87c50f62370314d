#include "cmd/capacity/simulation.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <utility>

#include "cmd/capacity/fair_shares.h"

namespace postcopy::capacity {
namespace {

constexpr double kGib = 1u << 30;
// Below this one is as good as another for saying what is the bottleneck.
constexpr double kBusy = 0.85;

// splitmix64: the same numbers with every library.
double NextFraction(uint64_t& state) {
  state += 0x9E3779B97F4A7C15;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

VmSpec DrawVm(const VmSpec& spec, uint64_t& random) {
  VmSpec vm = spec;
  const double factor = 1 + spec.spread * (2 * NextFraction(random) - 1);
  vm.ram_bytes *= factor;
  vm.hot_bytes *= factor;
  vm.hot_write_bytes_per_s *= factor;
  vm.cold_write_bytes_per_s *= factor;
  return vm;
}

// What of page bytes per second a host's CPUs can do.
double CpuCapacity(double cpus, double seconds_per_gib) {
  return seconds_per_gib > 0 ? cpus / seconds_per_gib * kGib
                             : std::numeric_limits<double>::infinity();
}

class Simulation {
 public:
  explicit Simulation(const Scenario& scenario) : scenario_(scenario) {
    const HostSpec& host = scenario.host;
    const Costs& costs = scenario.costs;
    const double link =
        host.link_bytes_per_s * costs.link_fraction / costs.wire_fraction;
    uplink_ = Add(1, scenario.uplink_bytes_per_s > 0
                         ? scenario.uplink_bytes_per_s * costs.link_fraction /
                               costs.wire_fraction
                         : std::numeric_limits<double>::infinity());
    source_link_ = Add(scenario.source_hosts, link);
    source_cpu_ =
        Add(scenario.source_hosts,
            CpuCapacity(host.service_cpus, costs.source_cpu_s_per_gib));
    destination_link_ = Add(scenario.destination_hosts, link);
    destination_cpu_ =
        Add(scenario.destination_hosts,
            CpuCapacity(host.service_cpus, costs.destination_cpu_s_per_gib));
    used_.resize(capacities_.size(), 0);
    waiting_.resize(scenario.source_hosts);
    from_.resize(scenario.source_hosts, 0);
    to_.resize(scenario.destination_hosts, 0);
    uint64_t random = scenario.seed;
    for (uint32_t vm = 0; vm < scenario.vms; ++vm) {
      waiting_[vm % scenario.source_hosts].push_back(
          DrawVm(scenario.vm, random));
    }
  }

  Outcome Run() {
    StartMore();
    while (!running_.empty()) {
      SetRates();
      double step = std::numeric_limits<double>::infinity();
      for (const Running& vm : running_) {
        step = std::min(step, vm.flow->NextEvent());
      }
      for (size_t r = 0; r < used_.size(); ++r) used_[r] += load_[r] * step;
      for (Running& vm : running_) vm.flow->Advance(step);
      now_s_ += step;
      TakeEnded();
      StartMore();
    }
    return Summary();
  }

 private:
  struct Running {
    std::unique_ptr<VmFlow> flow;
    size_t source;
    size_t destination;
  };

  size_t Add(uint32_t count, double capacity) {
    capacities_.insert(capacities_.end(), count, capacity);
    return capacities_.size() - count;
  }

  std::vector<size_t> ResourcesOf(const Running& vm) const {
    return {uplink_, source_link_ + vm.source, source_cpu_ + vm.source,
            destination_link_ + vm.destination,
            destination_cpu_ + vm.destination};
  }

  void SetRates() {
    std::vector<Demand> demands;
    for (const Running& vm : running_) {
      demands.push_back({vm.flow->wanted_bytes_per_s(), ResourcesOf(vm)});
    }
    const std::vector<double> rates = FairShares(demands, capacities_);
    load_.assign(capacities_.size(), 0);
    for (size_t i = 0; i < running_.size(); ++i) {
      running_[i].flow->SetRate(rates[i]);
      for (const size_t r : demands[i].resources) load_[r] += rates[i];
    }
  }

  void TakeEnded() {
    for (size_t i = 0; i < running_.size();) {
      if (!running_[i].flow->ended()) {
        ++i;
        continue;
      }
      --from_[running_[i].source];
      --to_[running_[i].destination];
      outcome_.vms.push_back(running_[i].flow->outcome());
      running_.erase(running_.begin() + static_cast<ptrdiff_t>(i));
    }
  }

  // Each to the destination with the fewest, as long as both ends take more.
  void StartMore() {
    for (size_t source = 0; source < waiting_.size(); ++source) {
      while (!waiting_[source].empty() &&
             from_[source] < scenario_.host.migrations_max) {
        const auto least = std::min_element(to_.begin(), to_.end());
        if (*least >= scenario_.host.migrations_max) return;
        ++from_[source];
        ++*least;
        running_.push_back({std::make_unique<VmFlow>(waiting_[source].front(),
                                                     scenario_.costs, now_s_),
                            source, static_cast<size_t>(least - to_.begin())});
        waiting_[source].pop_front();
      }
    }
  }

  double Busy(size_t first, uint32_t count) const {
    if (!std::isfinite(capacities_[first])) return 0;
    double used = 0;
    for (size_t r = first; r < first + count; ++r) used += used_[r];
    return used / (capacities_[first] * count * std::max(now_s_, 1e-9));
  }

  template <typename Value>
  double Percentile(double percent, Value value) const {
    std::vector<double> values;
    for (const VmOutcome& vm : outcome_.vms) values.push_back(value(vm));
    std::sort(values.begin(), values.end());
    const double rank = percent / 100 * static_cast<double>(values.size());
    return values[static_cast<size_t>(std::max(std::ceil(rank), 1.0)) - 1];
  }

  Outcome Summary() {
    outcome_.seconds = now_s_;
    outcome_.uplink = Busy(uplink_, 1);
    outcome_.source_link = Busy(source_link_, scenario_.source_hosts);
    outcome_.source_cpu = Busy(source_cpu_, scenario_.source_hosts);
    outcome_.destination_link =
        Busy(destination_link_, scenario_.destination_hosts);
    outcome_.destination_cpu =
        Busy(destination_cpu_, scenario_.destination_hosts);
    const auto downtime = [](const VmOutcome& vm) { return vm.downtime_s; };
    const auto whole = [](const VmOutcome& vm) {
      return vm.ended_s - vm.started_s;
    };
    outcome_.downtime_s_p50 = Percentile(50, downtime);
    outcome_.downtime_s_p99 = Percentile(99, downtime);
    outcome_.migration_s_p50 = Percentile(50, whole);
    outcome_.migration_s_p99 = Percentile(99, whole);
    for (const VmOutcome& vm : outcome_.vms) {
      outcome_.moved_bytes += vm.precopy_bytes + vm.stale_bytes;
      outcome_.faulted_bytes += vm.faulted_bytes;
    }
    return std::move(outcome_);
  }

  const Scenario& scenario_;
  // Where each kind begins in capacities_.
  size_t uplink_ = 0;
  size_t source_link_ = 0;
  size_t source_cpu_ = 0;
  size_t destination_link_ = 0;
  size_t destination_cpu_ = 0;
  std::vector<double> capacities_;  // page bytes per second
  std::vector<double> load_;        // now
  std::vector<double> used_;        // page bytes so far
  double now_s_ = 0;
  std::vector<std::deque<VmSpec>> waiting_;  // by source
  std::vector<uint32_t> from_;               // running, by source
  std::vector<uint32_t> to_;                 // and by destination
  std::vector<Running> running_;
  Outcome outcome_;
};

}  // namespace

absl::StatusOr<Outcome> Simulate(const Scenario& scenario) {
  if (absl::Status s = CheckScenario(scenario); !s.ok()) return s;
  return Simulation(scenario).Run();
}

std::string BottleneckOf(const Outcome& outcome) {
  const std::pair<const char*, double> all[] = {
      {"uplink", outcome.uplink},
      {"source link", outcome.source_link},
      {"source CPU", outcome.source_cpu},
      {"destination link", outcome.destination_link},
      {"destination CPU", outcome.destination_cpu}};
  const auto busiest = std::max_element(
      std::begin(all), std::end(all),
      [](const auto& a, const auto& b) { return a.second < b.second; });
  return busiest->second >= kBusy
             ? busiest->first
             : "none: streams, limits and waiting for one another";
}

}  // namespace postcopy::capacity
