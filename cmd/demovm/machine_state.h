// The blob that Machine::SaveState() gives.
//
//   header | GuestParams | first mismatch | vcpu_bytes for each vCPU
//
// All integers little-endian. Any change of it is a new version.
#ifndef CMD_DEMOVM_MACHINE_STATE_H_
#define CMD_DEMOVM_MACHINE_STATE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/demovm/guest_abi.h"
#include "cmd/demovm/machine.h"

namespace postcopy::demovm {

enum class MachineKind : uint32_t { kKvm = 1, kProcess = 2 };

absl::string_view ToString(MachineKind kind);

struct MachineState {
  MachineKind kind = MachineKind::kProcess;
  GuestParams params{};
  std::optional<GuestMismatch> first_mismatch{};
  std::vector<std::string> vcpus{};  // each of the same size
};

std::string EncodeState(const MachineState& state);

// INVALID_ARGUMENT, naming what is wrong, unless `blob` is what EncodeState()
// makes of a state of `kind` with 1..kMaxVcpus vCPUs of `vcpu_bytes` each. The
// values inside are not checked.
absl::StatusOr<MachineState> DecodeState(absl::string_view blob,
                                         MachineKind kind, size_t vcpu_bytes);

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_MACHINE_STATE_H_
