// What --dirty_tracking may say.
#ifndef CMD_DEMOVM_DIRTY_TRACKING_H_
#define CMD_DEMOVM_DIRTY_TRACKING_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace postcopy::demovm {

// How a VMM learns from KVM which pages its guest writes
// (dirtytrack/kvm_log_source.h, kvm_ring_source.h).
enum class KvmTracking {
  kLog,     // bitmaps; reading them protects the pages again
  kManual,  // bitmaps; the VMM says when (Linux 5.0)
  kRing,    // rings, one for each vCPU (Linux 5.11)
};

struct TrackingChoice {
  // The daemon asks the kernel; else the VMM marks a shared log, with what it
  // learns from `kvm` or, if the guest is a process, from the guest's program.
  bool pagemap_scan = false;
  KvmTracking kvm = KvmTracking::kManual;
};

// What `name` means for a guest that is `guest`, "kvm" or "process":
//
//   kvm       kvm-manual (or empty), kvm-log, kvm-ring, pagemap-scan
//   process   log (or empty), pagemap-scan
//
// INVALID_ARGUMENT with a sentence for all else.
absl::StatusOr<TrackingChoice> ChooseTracking(absl::string_view name,
                                              absl::string_view guest);

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_DIRTY_TRACKING_H_
