#include "cmd/metrics/metric_families.h"

#include <cmath>

namespace postcopy {
namespace {

constexpr double kSecondsPerMicro = 1e-6;
constexpr double kSecondsPerNano = 1e-9;

}  // namespace

void MetricFamilies::Counter(const std::string& name, const std::string& help,
                             double value, const MetricLabels& labels) {
  Add(name, help, prometheus::MetricType::Counter, labels).counter.value =
      value;
}

void MetricFamilies::Gauge(const std::string& name, const std::string& help,
                           double value, const MetricLabels& labels) {
  Add(name, help, prometheus::MetricType::Gauge, labels).gauge.value = value;
}

void MetricFamilies::Summary(const std::string& name, const std::string& help,
                             uint64_t count, double sum,
                             const MetricLabels& labels) {
  auto& summary =
      Add(name, help, prometheus::MetricType::Summary, labels).summary;
  summary.sample_count = count;
  summary.sample_sum = sum;
}

void MetricFamilies::Histogram(const std::string& name, const std::string& help,
                               const LatencyTotals& latency,
                               const MetricLabels& labels) {
  auto& histogram =
      Add(name, help, prometheus::MetricType::Histogram, labels).histogram;
  uint64_t count = 0;
  for (size_t i = 0; i < LatencyTotals::kBuckets; ++i) {
    count += latency.buckets[i];
    // The last has no end: it is in the count alone.
    if (i + 1 == LatencyTotals::kBuckets) break;
    histogram.bucket.push_back(
        {.cumulative_count = count,
         .upper_bound =
             std::ldexp(1.0, static_cast<int>(i) + 1) * kSecondsPerMicro});
  }
  histogram.sample_count = count;
  histogram.sample_sum = static_cast<double>(latency.sum_ns) * kSecondsPerNano;
}

prometheus::ClientMetric& MetricFamilies::Add(const std::string& name,
                                              const std::string& help,
                                              prometheus::MetricType type,
                                              const MetricLabels& labels) {
  const auto [at, is_new] = by_name_.emplace(name, families_.size());
  if (is_new) families_.push_back({name, help, type, {}});
  prometheus::ClientMetric metric;
  for (const auto& [label, value] : labels) {
    metric.label.push_back({label, value});
  }
  return families_[at->second].metric.emplace_back(std::move(metric));
}

std::vector<prometheus::MetricFamily> MetricFamilies::Take() {
  by_name_.clear();
  return std::exchange(families_, {});
}

}  // namespace postcopy
