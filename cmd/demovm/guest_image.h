// What a fresh guest finds in its RAM.
#ifndef CMD_DEMOVM_GUEST_IMAGE_H_
#define CMD_DEMOVM_GUEST_IMAGE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/demovm/guest_abi.h"
#include "cmd/demovm/guest_ram.h"
#include "cmd/demovm/machine.h"

namespace postcopy::demovm {

// Guest physical addresses that no option moves. Page 0 stays a hole: what
// follows a null pointer reads zeros there and shows up as dirt.
inline constexpr uint64_t kParamsAddress = 1 * kGuestPageBytes;
inline constexpr uint64_t kTaskStateAddress = 2 * kGuestPageBytes;
inline constexpr uint64_t kPageTableRoot = 3 * kGuestPageBytes;

inline constexpr uint64_t kStackPages = 2;

using GuestRegisters = std::array<uint64_t, kGuestRegisterCount>;

// Lays the guest out in `ram`. INVALID_ARGUMENT, naming the option and its
// limits, for options out of range or RAM too small for them.
absl::StatusOr<GuestParams> MakeGuestParams(const MachineOptions& options,
                                            const GuestRam& ram);

// OK if MakeGuestParams() gives `params` for some options with `vcpus`: then
// all that the program computes from them lies in `ram`. INVALID_ARGUMENT else.
absl::Status CheckGuestParams(const GuestParams& params, int vcpus,
                              const GuestRam& ram);

// Writes page tables, program and data. Returns what each vCPU starts with.
// REQUIRES: `ram` is all zeros, and `params` are made for it.
std::vector<GuestRegisters> InstallGuest(const GuestParams& params,
                                         const GuestRam& ram);

// INVALID_ARGUMENT unless vCPU `vcpu` of a guest with valid `params` can have
// `registers` at the end of a step (so that the program, given them, accesses
// nothing but RAM) or, if `within_step`, at any instruction.
absl::Status CheckRegisters(const GuestRegisters& registers,
                            const GuestParams& params, uint32_t vcpu,
                            bool within_step);

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_GUEST_IMAGE_H_
