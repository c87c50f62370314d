// A VM as those know it who must not keep it: its attachment holds descriptors
// of all of its RAM, which would outlive the VMM with them.
#ifndef CMD_VMM_CHANNEL_WEAK_VMM_H_
#define CMD_VMM_CHANNEL_WEAK_VMM_H_

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "cmd/vmm_channel/vmm_connection.h"

namespace postcopy {

// A value. Thread-safe, as the connection is.
class WeakVmm {
 public:
  explicit WeakVmm(const std::shared_ptr<VmmConnection>& vmm) : vmm_(vmm) {}

  // Runs a command of the VM; UNAVAILABLE if it is attached no longer.
  template <typename Result, typename... Parameters, typename... Arguments>
  Result Call(Result (VmmConnection::*command)(Parameters...),
              Arguments&&... arguments) const {
    const std::shared_ptr<VmmConnection> vmm = vmm_.lock();
    if (vmm == nullptr) {
      return absl::UnavailableError("the VMM has closed its connection");
    }
    return (vmm.get()->*command)(std::forward<Arguments>(arguments)...);
  }

  // See VmmConnection.
  void MarkHandedOver() const {
    if (const auto vmm = vmm_.lock()) vmm->MarkHandedOver();
  }

 private:
  std::weak_ptr<VmmConnection> vmm_;
};

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_WEAK_VMM_H_
