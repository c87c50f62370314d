#include "uffd/fault_times.h"

#include <algorithm>

namespace postcopy {

void FaultTimes::Record(const PendingFaults::Fault& fault, int64_t answered_ns,
                        int64_t installed_ns) {
  const int64_t read = fault.first_read_ns;
  const int64_t installed = std::max(installed_ns, read);
  const int64_t answered = std::clamp(answered_ns, read, installed);
  const int64_t asked = std::clamp(fault.asked_ns, read, answered);
  const auto record = [this](FaultStage stage, int64_t ns) {
    stages_[static_cast<size_t>(stage)].Record(ns);
  };
  record(FaultStage::kReading, fault.unread_ns);
  record(FaultStage::kAsking, asked - read);
  record(FaultStage::kAnswering, answered - asked);
  record(FaultStage::kInstalling, installed - answered);
  latency_.Record(installed - read);
}

std::array<LatencySnapshot, kFaultStages> FaultTimes::Stages() const {
  std::array<LatencySnapshot, kFaultStages> stages;
  for (size_t i = 0; i < kFaultStages; ++i) stages[i] = stages_[i].Snapshot();
  return stages;
}

}  // namespace postcopy
