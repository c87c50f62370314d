#include "cmd/daemon/vm_limits.h"

#include <sys/resource.h>

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {

absl::Status CheckVmsMax(size_t wanted) {
  if (wanted >= 1 && wanted <= kMaxVms) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--vms_max must be 1 to ", kMaxVms, ", not ", wanted));
}

absl::StatusOr<VmLimit> FitVms(size_t wanted, size_t descriptors_per_vm,
                               uint64_t descriptors) {
  if (absl::Status s = CheckVmsMax(wanted); !s.ok()) return s;
  const uint64_t left =
      descriptors - std::min<uint64_t>(descriptors, kDescriptorsOfDaemon);
  const uint64_t fit = left / descriptors_per_vm;
  if (fit == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "this process may have ", descriptors,
        " descriptors, which is not enough for one VM: raise LimitNOFILE to ",
        kDescriptorsOfDaemon + wanted * descriptors_per_vm));
  }
  if (fit >= wanted) return VmLimit{.vms_max = wanted};
  return VmLimit{
      .vms_max = fit,
      .note = absl::StrCat("takes ", fit, " VMs and not ", wanted,
                           ", because it may have ", descriptors,
                           " descriptors: raise LimitNOFILE to ",
                           kDescriptorsOfDaemon + wanted * descriptors_per_vm)};
}

uint64_t RaiseDescriptorLimit() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const rlimit raised = {limit.rlim_max, limit.rlim_max};
  if (::setrlimit(RLIMIT_NOFILE, &raised) != 0) return limit.rlim_cur;
  return raised.rlim_cur;
}

std::string TooManyVms(size_t vms, size_t leaving) {
  std::string why = absl::StrCat(
      vms, " VMs are attached, as many as this daemon is set to take: ",
      "end one, use another host, or start the daemon with more by --vms_max ",
      "(at most ", kMaxVms, ") and LimitNOFILE");
  if (leaving > 0) {
    absl::StrAppend(&why, "; ", leaving,
                    " of them have gone and are being let go: try again");
  }
  return why;
}

std::shared_ptr<const void> HeldVms::Hold() {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    ++state_->count;
  }
  return {state_.get(), [state = state_](const void*) {
            const std::lock_guard<std::mutex> lock(state->mutex);
            --state->count;
            state->fewer.notify_all();
          }};
}

size_t HeldVms::count() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->count;
}

bool HeldVms::AwaitBelow(size_t vms, absl::Duration patience) const {
  std::unique_lock<std::mutex> lock(state_->mutex);
  return state_->fewer.wait_for(lock, absl::ToChronoNanoseconds(patience),
                                [&] { return state_->count < vms; });
}

}  // namespace postcopy
