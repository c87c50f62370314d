// What every process tells of itself.
#ifndef CMD_METRICS_PROCESS_METRICS_H_
#define CMD_METRICS_PROCESS_METRICS_H_

#include "cmd/metrics/metric_families.h"

namespace postcopy {

// CPU time, memory, descriptors, start (process_*, named as Prometheus' own
// clients do) and the build. Reads /proc; leaves out what cannot be read.
void AddProcessMetrics(MetricFamilies& families);

}  // namespace postcopy

#endif  // CMD_METRICS_PROCESS_METRICS_H_
