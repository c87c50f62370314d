// What a daemon has counted for its VMs, added up over them.
#ifndef CMD_METRICS_VM_TOTALS_H_
#define CMD_METRICS_VM_TOTALS_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace postcopy {

// Each only grows. vm_metrics.cc has names and meanings. A role that does not
// count something leaves it 0.
enum class VmCounter {
  // Pages that moved: in precopy, because they were touched, and for nobody.
  kPrecopiedPages,
  kFaultedPages,
  kBackgroundPages,
  // Pages in other respects.
  kZeroPages,
  kStalePages,
  kDiscardedPages,
  kGivenUpPages,
  kLostPages,
  kMappedAheadPages,
  kBulkPageBytes,
  kBulkSentBytes,
  kDamagedRuns,
  kRounds,
  kRecoveries,
  kSourceErrors,
  // Messages of userfaultfds.
  kFaultMessages,
  kLocalFaults,
  kMinorFaults,
  kDuplicateFaults,
  kForeignFaults,
  kDeferredFaults,
  kOverflowedFaults,
  kUrgentRequests,
  kUrgentRequestFailures,
  kBulkRequests,
  kBulkRequestFailures,
  kInstallRetries,
  kStalledNanos,
  // Guests handed over, and how long they stood still for that.
  kHandOvers,
  kDowntimeNanos,
  kAddedDowntimeNanos,
};
inline constexpr size_t kVmCounters =
    static_cast<size_t>(VmCounter::kAddedDowntimeNanos) + 1;

// Durations by [2^i, 2^(i+1)) microseconds; the first bucket from 0, the last
// without end.
struct LatencyTotals {
  static constexpr size_t kBuckets = 32;
  std::array<uint64_t, kBuckets> buckets{};
  uint64_t sum_ns = 0;

  void Add(const LatencyTotals& other);
};

// Reading, asking, answering, installing (v1.FaultStageKind).
inline constexpr size_t kFaultStageKinds = 4;

// A value.
struct VmTotals {
  std::array<uint64_t, kVmCounters> counters{};
  LatencyTotals fault_latency;
  std::array<LatencyTotals, kFaultStageKinds> fault_stages;
  // Of what has not ended; what has shows none.
  uint64_t remaining_pages = 0;
  uint64_t outstanding_faults = 0;

  uint64_t& operator[](VmCounter counter) {
    return counters[static_cast<size_t>(counter)];
  }
  uint64_t operator[](VmCounter counter) const {
    return counters[static_cast<size_t>(counter)];
  }
  void Add(const VmTotals& other);
};

}  // namespace postcopy

#endif  // CMD_METRICS_VM_TOTALS_H_
