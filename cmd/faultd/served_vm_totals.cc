#include "cmd/faultd/served_vm_totals.h"

#include <cstddef>

namespace postcopy {
namespace {

static_assert(LatencyTotals::kBuckets == LatencySnapshot::kMicrosBuckets);
static_assert(kFaultStageKinds == kFaultStages);

LatencyTotals TotalsOf(const LatencySnapshot& latency) {
  return {.buckets = latency.micros_buckets(), .sum_ns = latency.sum_ns()};
}

void AddPages(const DestinationCounters& pages, VmTotals& totals) {
  totals[VmCounter::kPrecopiedPages] = pages.precopied.value();
  totals[VmCounter::kFaultedPages] = pages.faulted.value();
  totals[VmCounter::kBackgroundPages] = pages.background.value();
  totals[VmCounter::kDiscardedPages] = pages.discarded.value();
  totals[VmCounter::kGivenUpPages] = pages.given_up.value();
  totals[VmCounter::kLostPages] = pages.lost_pages;
  totals[VmCounter::kMappedAheadPages] = pages.mapped_ahead.value();
}

void AddFaults(const DestinationCounters& faults, VmTotals& totals) {
  totals[VmCounter::kFaultMessages] = faults.faults;
  totals[VmCounter::kLocalFaults] = faults.local_faults;
  totals[VmCounter::kMinorFaults] = faults.minor_faults;
  totals[VmCounter::kDuplicateFaults] = faults.duplicate_faults;
  totals[VmCounter::kForeignFaults] = faults.foreign_faults;
  totals[VmCounter::kDeferredFaults] = faults.deferred_faults;
  totals[VmCounter::kOverflowedFaults] = faults.overflowed_faults;
  totals[VmCounter::kUrgentRequests] = faults.urgent_requests;
  totals[VmCounter::kUrgentRequestFailures] = faults.urgent_request_failures;
  totals[VmCounter::kBulkRequests] = faults.bulk_requests;
  totals[VmCounter::kBulkRequestFailures] = faults.bulk_request_failures;
  totals[VmCounter::kInstallRetries] = faults.install_retries;
}

}  // namespace

VmTotals TotalsOf(const DestinationCounters& counters,
                  const LatencySnapshot& latency,
                  const FaultTimesSnapshot& times, bool missing) {
  VmTotals totals;
  AddPages(counters, totals);
  AddFaults(counters, totals);
  totals[VmCounter::kStalledNanos] = times.stalled_ns;
  totals.fault_latency = TotalsOf(latency);
  for (size_t i = 0; i < kFaultStages; ++i) {
    totals.fault_stages[i] = TotalsOf(times.stages[i]);
  }
  if (!missing) return totals;
  totals.remaining_pages = counters.missing.value();
  totals.outstanding_faults = counters.outstanding_faults;
  return totals;
}

}  // namespace postcopy
