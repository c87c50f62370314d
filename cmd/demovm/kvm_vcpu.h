// One vCPU of KVM: entering it, stopping it, and moving it elsewhere.
#ifndef CMD_DEMOVM_KVM_VCPU_H_
#define CMD_DEMOVM_KVM_VCPU_H_

#include <linux/kvm.h>
#include <pthread.h>
#include <sys/ioctl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/demovm/guest_abi.h"
#include "cmd/demovm/guest_image.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy::demovm {

// All that this guest can have in a vCPU. It has no interrupt controller and no
// timer, reads no TSC and no MSR, and uses of the FPU only XMM registers: of
// XSAVE's areas the legacy one is enough, and every host has it alike.
struct KvmVcpuState {
  kvm_regs regs;
  kvm_sregs sregs;
  std::array<uint8_t, 512> fxsave;  // SDM 1, 10.5.1
  kvm_vcpu_events events;
  kvm_debugregs debugregs;
};
static_assert(std::is_trivially_copyable_v<KvmVcpuState>);

// The features of a vCPU: the kernel's struct kvm_cpuid2, whose C++ version in
// <linux/kvm.h> has a flexible array at the wrong offset, and so ioctl numbers
// that the kernel does not know.
struct KvmCpuid {
  static constexpr uint32_t kEntriesMax = 256;

  uint32_t entry_count = kEntriesMax;
  uint32_t padding = 0;
  std::array<kvm_cpuid_entry2, kEntriesMax> entries = {};
};
inline constexpr size_t kKvmCpuidHeaderBytes = 8;
static_assert(offsetof(KvmCpuid, entries) == kKvmCpuidHeaderBytes);
inline constexpr unsigned long kKvmGetSupportedCpuid =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, kKvmCpuidHeaderBytes);
inline constexpr unsigned long kKvmSetCpuid =
    _IOC(_IOC_WRITE, KVMIO, 0x90, kKvmCpuidHeaderBytes);

class KvmVcpu {
 public:
  // What a vCPU's `out` to kReportPort said.
  using Reported =
      absl::FunctionRef<void(uint32_t kind, const uint64_t numbers[4])>;

  // vCPU `index` of `vm`, with the features in `cpuid`. `run_bytes` is what
  // KVM_GET_VCPU_MMAP_SIZE says.
  static absl::StatusOr<std::unique_ptr<KvmVcpu>> Create(int vm, int index,
                                                         const KvmCpuid& cpuid,
                                                         size_t run_bytes);
  KvmVcpu(const KvmVcpu&) = delete;
  KvmVcpu& operator=(const KvmVcpu&) = delete;
  ~KvmVcpu();

  // Called when the vCPU's dirty ring is full: makes room in it. The vCPU
  // cannot go on with what this returns, if not OK.
  using RingFull = absl::FunctionRef<absl::Status()>;

  // Lets the vCPU run until Kick(), passing on its reports. Returns OK when it
  // can be saved; else why it cannot go on.
  absl::Status Run(Reported reported, RingFull ring_full);

  // Ends the Run() of now or the next one, in `thread`, from any thread.
  void Kick(pthread_t thread);
  // Takes back a Kick().
  void ClearKick();

  // While it does not run:
  absl::StatusOr<KvmVcpuState> Save() const;
  // INVALID_ARGUMENT if KVM does not take it.
  absl::Status Load(const KvmVcpuState& state);
  // Stands at the program's beginning, with `registers`.
  absl::Status Reset(const GuestParams& params, const GuestRegisters& registers,
                     uint64_t entry);
  absl::StatusOr<GuestRegisters> Registers() const;

  // For its dirty ring.
  int fd() const { return fd_.get(); }

 private:
  KvmVcpu(int index, UniqueFd fd, kvm_run* run, size_t run_bytes)
      : index_(index), fd_(std::move(fd)), run_(run), run_bytes_(run_bytes) {}

  absl::Status GetFxsave(std::array<uint8_t, 512>& fxsave) const;
  absl::Status SetFxsave(const std::array<uint8_t, 512>& fxsave);
  absl::Status HandleExit(Reported reported, RingFull ring_full);
  absl::Status HandleIo(Reported reported);
  absl::Status Unexpected(absl::string_view what) const;

  const int index_;
  const UniqueFd fd_;
  kvm_run* const run_;
  const size_t run_bytes_;
};

// The XMM registers as guest_abi.h uses them.
GuestRegisters GuestRegistersOf(const KvmVcpuState& state);

// Installs, once, the handler of the signal that Kick() sends.
void InstallKickHandler();

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_KVM_VCPU_H_
