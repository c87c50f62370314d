#include "cmd/daemon/vm_events.h"

#include "absl/strings/str_cat.h"
#include "cmd/metrics/vm_metrics.h"

namespace postcopy {

void VmEvents::Attached(const std::string& vm_name) {
  attached_.fetch_add(1, std::memory_order_relaxed);
  comings_.Write(
      {LogSeverity::kInfo, "a VM has attached", {{kVmNameField, vm_name}}});
}

void VmEvents::Detached(const std::string& vm_name) {
  detached_.fetch_add(1, std::memory_order_release);
  comings_.Write(
      {LogSeverity::kInfo, "a VM has gone", {{kVmNameField, vm_name}}});
}

void VmEvents::Refused(const absl::Status& why) {
  refused_.fetch_add(1, std::memory_order_relaxed);
  refusals_.Write({LogSeverity::kWarning,
                   absl::StrCat("a VM is refused: ", why.message()),
                   {}});
}

void VmEvents::AddMetrics(MetricFamilies& families) const {
  // In this order: whoever is seen to have gone is seen to have come.
  const uint64_t detached = detached_.load(std::memory_order_acquire);
  const uint64_t attached = attached_.load(std::memory_order_relaxed);
  const uint64_t refused = refused_.load(std::memory_order_relaxed);
  AddAttachMetrics(role_,
                   {.attached = attached - detached,
                    .attempts = attached + refused,
                    .refusals = refused},
                   families);
}

}  // namespace postcopy
