// Metrics as Prometheus wants them, gathered for one scrape.
#ifndef CMD_METRICS_METRIC_FAMILIES_H_
#define CMD_METRICS_METRIC_FAMILIES_H_

#include <prometheus/metric_family.h>

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cmd/metrics/vm_totals.h"

namespace postcopy {

// Label names and values. Few, and with few values: never an id or an address.
using MetricLabels = std::vector<std::pair<std::string, std::string>>;

// A metric with several labels is given once for each; the help of the first
// counts. Not thread-safe.
class MetricFamilies {
 public:
  void Counter(const std::string& name, const std::string& help, double value,
               const MetricLabels& labels = {});
  void Gauge(const std::string& name, const std::string& help, double value,
             const MetricLabels& labels = {});
  // A sum and how many made it up: a summary without quantiles.
  void Summary(const std::string& name, const std::string& help, uint64_t count,
               double sum, const MetricLabels& labels = {});
  // In seconds. A bucket's bound belongs to the next one, and Prometheus counts
  // it to this: a difference of durations that are whole microseconds.
  void Histogram(const std::string& name, const std::string& help,
                 const LatencyTotals& latency, const MetricLabels& labels = {});

  // All of them, in the order of their first appearance. Empty afterwards.
  std::vector<prometheus::MetricFamily> Take();

 private:
  prometheus::ClientMetric& Add(const std::string& name,
                                const std::string& help,
                                prometheus::MetricType type,
                                const MetricLabels& labels);

  std::vector<prometheus::MetricFamily> families_;
  std::map<std::string, size_t> by_name_;
};

}  // namespace postcopy

#endif  // CMD_METRICS_METRIC_FAMILIES_H_
