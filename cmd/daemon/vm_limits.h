// How many VMs a daemon takes.
#ifndef CMD_DAEMON_VM_LIMITS_H_
#define CMD_DAEMON_VM_LIMITS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace postcopy {

// VMs attached to a daemon at a time at each of its sockets, and the greatest
// --vms_max.
inline constexpr size_t kMaxVms = 256;

// Most descriptors that a daemon holds for a VM: the 66 that it brings, as many
// again for its migration, connections, what the kernel is asked through.
inline constexpr size_t kDescriptorsPerVm = 160;
// For a VM that is served from a snapshot: its socket and userfaultfd, rings,
// files and events.
inline constexpr size_t kDescriptorsPerSnapshotVm = 16;
// Of the daemon itself: sockets that listen, peers that have not attached,
// connections to the control plane.
inline constexpr size_t kDescriptorsOfDaemon = 512;

// Most threads that a daemon has for a VM, of its own and of gRPC: at a
// destination the driver, the guest's commands, faults, background, mapping
// ahead, urgent answers.
inline constexpr size_t kThreadsPerVm = 8;

struct VmLimit {
  size_t vms_max = 0;
  // Why it is less than was asked for, and what to change; empty: it is not.
  std::string note;
};

// INVALID_ARGUMENT unless 1 <= wanted <= kMaxVms.
absl::Status CheckVmsMax(size_t wanted);

// `wanted`, or as many as `descriptors` suffice for. INVALID_ARGUMENT unless
// 1 <= wanted <= kMaxVms, FAILED_PRECONDITION if not one VM fits.
// REQUIRES: descriptors_per_vm > 0.
absl::StatusOr<VmLimit> FitVms(size_t wanted, size_t descriptors_per_vm,
                               uint64_t descriptors);

// Raises this process's soft limit of descriptors to the hard one; returns what
// it is then.
uint64_t RaiseDescriptorLimit();

// For RESOURCE_EXHAUSTED: why one more VM is refused, and what to do.
std::string TooManyVms(size_t attached);

}  // namespace postcopy

#endif  // CMD_DAEMON_VM_LIMITS_H_
