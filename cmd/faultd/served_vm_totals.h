// What a VM whose faults are served has counted, for metrics.
#ifndef CMD_FAULTD_SERVED_VM_TOTALS_H_
#define CMD_FAULTD_SERVED_VM_TOTALS_H_

#include "cmd/metrics/vm_totals.h"
#include "uffd/destination_vm.h"
#include "uffd/fault_times.h"
#include "uffd/latency_histogram.h"

namespace postcopy {

// `missing`: whether the pages that are missing are still wanted.
VmTotals TotalsOf(const DestinationCounters& counters,
                  const LatencySnapshot& latency,
                  const FaultTimesSnapshot& times, bool missing);

}  // namespace postcopy

#endif  // CMD_FAULTD_SERVED_VM_TOTALS_H_
