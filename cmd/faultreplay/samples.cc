#include "cmd/faultreplay/samples.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "dirtytrack/check.h"

namespace postcopy {

std::vector<int64_t> SortedLatencies(absl::Span<const Wait> waits) {
  std::vector<int64_t> sorted;
  sorted.reserve(waits.size());
  for (const Wait& wait : waits) sorted.push_back(wait.latency_ns);
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

int64_t PercentileOf(absl::Span<const int64_t> sorted, double percent) {
  POSTCOPY_CHECK(percent > 0 && percent <= 100);
  if (sorted.empty()) return 0;
  const double wanted =
      std::ceil(static_cast<double>(sorted.size()) * percent / 100);
  const auto rank = static_cast<size_t>(std::max(wanted, 1.0));
  return sorted[std::min(rank, sorted.size()) - 1];
}

int64_t SumOfWaits(absl::Span<const Wait> waits) {
  int64_t sum = 0;
  for (const Wait& wait : waits) sum += wait.latency_ns;
  return sum;
}

int64_t UnionOfWaits(absl::Span<const Wait> waits) {
  std::vector<Wait> sorted(waits.begin(), waits.end());
  std::sort(sorted.begin(), sorted.end(), [](const Wait& a, const Wait& b) {
    return a.start_ns < b.start_ns;
  });
  int64_t sum = 0;
  int64_t covered = INT64_MIN;  // up to here
  for (const Wait& wait : sorted) {
    const int64_t end = wait.start_ns + wait.latency_ns;
    if (end <= covered) continue;
    sum += end - std::max(wait.start_ns, covered);
    covered = end;
  }
  return sum;
}

double MedianOf(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  if (values.size() % 2 == 1) return values[middle];
  return (values[middle - 1] + values[middle]) / 2;
}

double SpreadOf(const std::vector<double>& values) {
  const double median = MedianOf(values);
  if (values.size() < 2 || median <= 0) return 0;
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return (*high - *low) / median;
}

}  // namespace postcopy
