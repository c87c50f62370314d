// Who gets how much of links that several share.
#ifndef CMD_CAPACITY_FAIR_SHARES_H_
#define CMD_CAPACITY_FAIR_SHARES_H_

#include <cstddef>
#include <vector>

namespace postcopy::capacity {

// A flow that wants at most so much, of each of these resources.
struct Demand {
  double wanted = 0;
  std::vector<size_t> resources;  // indices into the capacities
};

// Max-min fair rates, by progressive filling: all grow alike until one has what
// it wants or a resource of it is used up. One for each demand. A resource of
// infinite capacity is none.
std::vector<double> FairShares(const std::vector<Demand>& demands,
                               std::vector<double> capacities);

}  // namespace postcopy::capacity

#endif  // CMD_CAPACITY_FAIR_SHARES_H_
