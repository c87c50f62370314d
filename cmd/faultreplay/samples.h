// Exact statistics over what was measured.
#ifndef CMD_FAULTREPLAY_SAMPLES_H_
#define CMD_FAULTREPLAY_SAMPLES_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace postcopy {

// One wait of one thread, in nanoseconds since the replay began.
struct Wait {
  int64_t start_ns = 0;
  int64_t latency_ns = 0;
};

// The latencies of `waits`, sorted.
std::vector<int64_t> SortedLatencies(absl::Span<const Wait> waits);

// The smallest of `sorted` that at least `percent` of all do not exceed; 0 if
// there is none. REQUIRES: 0 < percent <= 100.
int64_t PercentileOf(absl::Span<const int64_t> sorted, double percent);

// Sum of all waits.
int64_t SumOfWaits(absl::Span<const Wait> waits);

// For how long at least one was going on. `waits` in any order.
int64_t UnionOfWaits(absl::Span<const Wait> waits);

// The middle one, or the mean of the two in the middle; 0 if there is none.
double MedianOf(std::vector<double> values);

// (largest - smallest) / median, of values that are positive; 0 for fewer than
// two.
double SpreadOf(const std::vector<double>& values);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_SAMPLES_H_
