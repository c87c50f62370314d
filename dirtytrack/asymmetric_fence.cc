#include "dirtytrack/asymmetric_fence.h"

#include <linux/membarrier.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

// glibc has no wrapper.
bool Membarrier(int command) {
  return ::syscall(SYS_membarrier, command, 0, 0) == 0;
}

}  // namespace

bool RegisterForHeavyFence() {
  static const bool registered =
      Membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED);
  return registered;
}

absl::Status HeavyFence() {
  if (Membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "membarrier(2) is refused (", ::strerrordesc_np(errno),
      "), and who marks dirty pages relies on it; permit it "
      "(SystemCallFilter=membarrier in the unit), or have the VMM mark pages "
      "without kLightFence"));
}

}  // namespace postcopy
