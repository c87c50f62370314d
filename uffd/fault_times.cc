#include "uffd/fault_times.h"

#include <algorithm>

namespace postcopy {

void FaultTimes::Record(PageIndex page, const PendingFaults::Fault& fault,
                        int64_t answered_ns, int64_t installed_ns) {
  const int64_t read = fault.first_read_ns;
  const int64_t installed = std::max(installed_ns, read);
  const int64_t answered = std::clamp(answered_ns, read, installed);
  const int64_t asked = std::clamp(fault.asked_ns, read, answered);
  // By FaultStage.
  const std::array<int64_t, kFaultStages> times_ns = {
      fault.unread_ns, asked - read, answered - asked, installed - answered};
  for (size_t i = 0; i < kFaultStages; ++i) stages_[i].Record(times_ns[i]);
  latency_.Record(installed - read);
  if (records_ == nullptr) return;
  FaultRecord ended = {.page = page, .read_ns = read, .ended = true};
  std::copy(times_ns.begin(), times_ns.end(), ended.stages_ns.begin());
  records_->Add(ended);
}

std::array<LatencySnapshot, kFaultStages> FaultTimes::Stages() const {
  std::array<LatencySnapshot, kFaultStages> stages;
  for (size_t i = 0; i < kFaultStages; ++i) stages[i] = stages_[i].Snapshot();
  return stages;
}

}  // namespace postcopy
