#include "cmd/capacity/fair_shares.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace postcopy::capacity {
namespace {

// Of what was asked for: less is rounding.
constexpr double kNothing = 1e-9;

std::vector<size_t> UsersOf(const std::vector<Demand>& demands,
                            const std::vector<bool>& done, size_t resources) {
  std::vector<size_t> users(resources, 0);
  for (size_t i = 0; i < demands.size(); ++i) {
    if (done[i]) continue;
    for (const size_t resource : demands[i].resources) ++users[resource];
  }
  return users;
}

}  // namespace

std::vector<double> FairShares(const std::vector<Demand>& demands,
                               std::vector<double> capacities) {
  const std::vector<double> whole = capacities;
  std::vector<double> rates(demands.size(), 0);
  std::vector<bool> done(demands.size());
  for (size_t i = 0; i < demands.size(); ++i) done[i] = demands[i].wanted <= 0;
  // Each turn ends one flow at least.
  while (std::find(done.begin(), done.end(), false) != done.end()) {
    const std::vector<size_t> users = UsersOf(demands, done, capacities.size());
    double step = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < demands.size(); ++i) {
      if (!done[i]) step = std::min(step, demands[i].wanted - rates[i]);
    }
    for (size_t r = 0; r < capacities.size(); ++r) {
      if (users[r] > 0) {
        step = std::min(step, capacities[r] / static_cast<double>(users[r]));
      }
    }
    for (size_t r = 0; r < capacities.size(); ++r) {
      capacities[r] -= step * static_cast<double>(users[r]);
    }
    for (size_t i = 0; i < demands.size(); ++i) {
      if (done[i]) continue;
      rates[i] += step;
      done[i] = rates[i] >= demands[i].wanted * (1 - kNothing);
      for (const size_t r : demands[i].resources) {
        done[i] = done[i] || (std::isfinite(whole[r]) &&
                              capacities[r] <= whole[r] * kNothing);
      }
    }
  }
  return rates;
}

}  // namespace postcopy::capacity
