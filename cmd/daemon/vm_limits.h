// How many VMs a daemon takes.
#ifndef CMD_DAEMON_VM_LIMITS_H_
#define CMD_DAEMON_VM_LIMITS_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

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

// For RESOURCE_EXHAUSTED: why one more VM is refused, and what to do. `vms`
// count, and of these `leaving` have gone and something of them is still held.
std::string TooManyVms(size_t vms, size_t leaving = 0);

// Counts VMs for as long as anything of them is held: their memory,
// descriptors, threads. Thread-safe.
class HeldVms {
 public:
  // One VM more, until the last copy of what is returned has gone. Copies go
  // with all that is held of the VM, and are let go behind it; they may outlive
  // this.
  std::shared_ptr<const void> Hold();

  size_t count() const;
  // Whether it is below `vms`, now or within `patience`.
  bool AwaitBelow(size_t vms, absl::Duration patience) const;

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable fewer;
    size_t count = 0;  // guarded by mutex
  };

  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace postcopy

#endif  // CMD_DAEMON_VM_LIMITS_H_
