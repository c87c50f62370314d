// The metrics of a daemon's VMs.
#ifndef CMD_METRICS_VM_METRICS_H_
#define CMD_METRICS_VM_METRICS_H_

#include <string>

#include "cmd/metrics/metric_families.h"
#include "cmd/metrics/vm_totals.h"

namespace postcopy {

// Adds all of `totals`; `role` is the label: "source", "destination" or
// "snapshot".
void AddVmMetrics(const std::string& role, const VmTotals& totals,
                  MetricFamilies& families);

// VMs that are attached now, that wanted to be, and that were turned away.
struct AttachTotals {
  uint64_t attached = 0;
  uint64_t attempts = 0;
  uint64_t refusals = 0;
};
void AddAttachMetrics(const std::string& role, const AttachTotals& totals,
                      MetricFamilies& families);

}  // namespace postcopy

#endif  // CMD_METRICS_VM_METRICS_H_
