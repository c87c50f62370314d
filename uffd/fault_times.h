// Where the time of a VM's faults goes.
#ifndef UFFD_FAULT_TIMES_H_
#define UFFD_FAULT_TIMES_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "dirtytrack/types.h"
#include "uffd/fault_records.h"
#include "uffd/latency_histogram.h"
#include "uffd/pending_faults.h"
#include "uffd/waiting_threads.h"

namespace postcopy {

// What happens to a fault, one after the other.
enum class FaultStage {
  // From poll() returning in the fault loop until the fault's message was read.
  // The kernel's message bears no time, so this is all that is seen of the time
  // before the read. Not seen: from the fault until poll() returned, that is
  // the fault loop's way out of its sleep or, if it was busy, what it did with
  // the messages before. A message that came after poll() had returned counts
  // like the others of its read; 0 if there were none when it returned.
  kReading,
  // From the read until its request was handed to the source that answered: the
  // other messages of the read, the lock that reconnecting holds and, if there
  // was no source, the time until there was.
  kAsking,
  // From handing it over (which counts here) until the answer, as pages, was
  // with the DestinationVm: the network, the source, decoding.
  kAnswering,
  // From the answer until the page was there and who waited was woken: runs of
  // the same answer that came first, tries that the kernel or a host without
  // memory refused, and the ioctl.
  kInstalling,
};
inline constexpr size_t kFaultStages = 4;

// What FaultTimes held, and who waited. A value of 32 KiB.
struct FaultTimesSnapshot {
  // By FaultStage; each has the same faults.
  std::array<LatencySnapshot, kFaultStages> stages;
  // For how long at least one faulted page was waited for, from the read of its
  // message on, in nanoseconds.
  uint64_t stalled_ns = 0;
  // Nobody unless the VMM has set up UFFD_FEATURE_THREAD_ID.
  FaultingThreads threads;

  const LatencySnapshot& stage(FaultStage stage) const {
    return stages[static_cast<size_t>(stage)];
  }
};

// One histogram for each stage, and one for a fault's latency, from its read to
// its end, which is the sum of all stages but kReading, to the nanosecond.
// Thread-safe, lock-free, 40 KiB.
class FaultTimes {
 public:
  // `records`, which may be null and outlives this, is told of each end.
  explicit FaultTimes(FaultRecords* records = nullptr) : records_(records) {}

  // `page`, of `fault`, came with an answer that was here at `answered_ns`, and
  // is in place since `installed_ns`. A time before that of the stage before it
  // counts as that: of what was never asked for, all is kAsking.
  void Record(PageIndex page, const PendingFaults::Fault& fault,
              int64_t answered_ns, int64_t installed_ns);

  LatencySnapshot Latency() const { return latency_.Snapshot(); }
  // Beside concurrent Records the stages may disagree by those under way.
  std::array<LatencySnapshot, kFaultStages> Stages() const;

 private:
  FaultRecords* const records_;
  LatencyHistogram latency_;
  std::array<LatencyHistogram, kFaultStages> stages_;
};

}  // namespace postcopy

#endif  // UFFD_FAULT_TIMES_H_
