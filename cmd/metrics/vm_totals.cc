#include "cmd/metrics/vm_totals.h"

namespace postcopy {

void LatencyTotals::Add(const LatencyTotals& other) {
  for (size_t i = 0; i < kBuckets; ++i) buckets[i] += other.buckets[i];
  sum_ns += other.sum_ns;
}

void VmTotals::Add(const VmTotals& other) {
  for (size_t i = 0; i < kVmCounters; ++i) counters[i] += other.counters[i];
  fault_latency.Add(other.fault_latency);
  for (size_t i = 0; i < kFaultStageKinds; ++i) {
    fault_stages[i].Add(other.fault_stages[i]);
  }
  remaining_pages += other.remaining_pages;
  outstanding_faults += other.outstanding_faults;
}

}  // namespace postcopy
