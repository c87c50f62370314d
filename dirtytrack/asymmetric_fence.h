// A fence that costs one side nothing and the other side a system call.
//
// Dekker's handshake (store mine, look at yours) needs a full barrier on both
// sides. Where one side runs a million times as often as the other, the rare
// side can run it for both: membarrier(2) makes every thread of the processes
// that registered pass a full barrier. The often side is then left with a
// compiler barrier.
#ifndef DIRTYTRACK_ASYMMETRIC_FENCE_H_
#define DIRTYTRACK_ASYMMETRIC_FENCE_H_

#include <atomic>

#include "absl/status/status.h"

namespace postcopy {

// Lets this process use LightFence(). False if the kernel does not (older than
// 4.16, or a seccomp filter): use a locked instruction instead. Thread-safe;
// calls after the first cost a load.
bool RegisterForHeavyFence();

// Together with a HeavyFence() of any process: if a thread stores x, calls
// this, and loads y, and another stores y, calls HeavyFence(), and loads x,
// then at least one of them sees the other's store.
// REQUIRES: RegisterForHeavyFence() has returned true.
inline void LightFence() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

// Some hundred nanoseconds; microseconds if threads of registered processes run
// on other CPUs. FAILED_PRECONDITION, with what to permit, if the kernel
// refuses.
absl::Status HeavyFence();

}  // namespace postcopy

#endif  // DIRTYTRACK_ASYMMETRIC_FENCE_H_
