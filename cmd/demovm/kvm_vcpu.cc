#include "cmd/demovm/kvm_vcpu.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"

namespace postcopy::demovm {
namespace {

// In the XSAVE area (SDM 1, 13.4).
constexpr size_t XmmOffset(size_t i) { return 160 + 16 * i; }
constexpr size_t kXstateBvOffset = 512;
constexpr uint64_t kXstateX87AndSse = 3;
// The kernel's struct kvm_xsave; <linux/kvm.h>'s has the wrong size in C++ (see
// KvmCpuid).
using Xsave = std::array<uint8_t, 4096>;
constexpr unsigned long kKvmGetXsave =
    _IOC(_IOC_READ, KVMIO, 0xa4, sizeof(Xsave));
constexpr unsigned long kKvmSetXsave =
    _IOC(_IOC_WRITE, KVMIO, 0xa5, sizeof(Xsave));

int KickSignal() { return SIGRTMIN + 6; }

// 64-bit user mode with paging. Code at privilege level 3 runs natively under
// every kind of KVM; some only emulate level 0.
constexpr uint64_t kCr0 = 0x80010033;  // PG, WP, NE, ET, MP, PE
constexpr uint64_t kCr4 = 0x620;       // OSXMMEXCPT, OSFXSR, PAE
constexpr uint64_t kEfer = 0x501;      // LMA, LME, SCE
constexpr uint64_t kRflags = 0x3202;   // IOPL 3, IF
constexpr uint16_t kCodeSelector = 0x33;
constexpr uint16_t kDataSelector = 0x2b;

kvm_segment CodeSegment() {
  kvm_segment segment = {};
  segment.limit = 0xffffffff;
  segment.selector = kCodeSelector;
  segment.type = 11;  // execute, read, accessed
  segment.present = 1;
  segment.dpl = 3;
  segment.s = 1;
  segment.l = 1;
  segment.g = 1;
  return segment;
}

kvm_segment DataSegment() {
  kvm_segment segment = CodeSegment();
  segment.selector = kDataSelector;
  segment.type = 3;  // read, write, accessed
  segment.db = 1;
  segment.l = 0;
  return segment;
}

// Its bitmap of I/O ports lets user mode use `out`. IOPL 3 alone would do on
// hardware, but a KVM without it (PVM) forgets IOPL when the guest runs.
kvm_segment TaskSegment() {
  kvm_segment segment = {};
  segment.base = kTaskStateAddress;
  segment.limit = kGuestPageBytes - 1;
  segment.selector = 0x40;
  segment.type = 11;  // busy 64-bit TSS
  segment.present = 1;
  return segment;
}

void SetUserMode(kvm_sregs& sregs) {
  sregs.cs = CodeSegment();
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = DataSegment();
  sregs.tr = TaskSegment();
  sregs.ldt = {};
  sregs.ldt.unusable = 1;
  sregs.cr0 = kCr0;
  sregs.cr3 = kPageTableRoot;
  sregs.cr4 = kCr4;
  sregs.efer = kEfer;
}

}  // namespace

void InstallKickHandler() {
  static const bool installed = [] {
    struct sigaction action = {};
    // Without SA_RESTART, so that the signal ends KVM_RUN.
    action.sa_handler = [](int) {};
    return sigaction(KickSignal(), &action, nullptr) == 0;
  }();
  static_cast<void>(installed);
}

GuestRegisters GuestRegistersOf(const KvmVcpuState& state) {
  static_assert(kGuestRegisterCount <= 16);
  GuestRegisters registers;
  for (size_t i = 0; i < registers.size(); ++i) {
    std::memcpy(&registers[i], state.fxsave.data() + XmmOffset(i),
                sizeof(registers[i]));
  }
  return registers;
}

absl::StatusOr<std::unique_ptr<KvmVcpu>> KvmVcpu::Create(int vm, int index,
                                                         const KvmCpuid& cpuid,
                                                         size_t run_bytes) {
  UniqueFd fd(ioctl(vm, KVM_CREATE_VCPU, index));
  if (!fd.valid()) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot create vCPU ", index));
  }
  void* run =
      mmap(nullptr, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (run == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot map vCPU ", index));
  }
  std::unique_ptr<KvmVcpu> vcpu(
      new KvmVcpu(index, std::move(fd), static_cast<kvm_run*>(run), run_bytes));
  if (ioctl(vcpu->fd_.get(), kKvmSetCpuid, &cpuid) != 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot set the features of vCPU ", index));
  }
  return vcpu;
}

KvmVcpu::~KvmVcpu() { munmap(run_, run_bytes_); }

void KvmVcpu::Kick(pthread_t thread) {
  // The flag ends a KVM_RUN that has not begun, the signal one that has.
  std::atomic_ref<uint8_t>(run_->immediate_exit).store(1);
  pthread_kill(thread, KickSignal());
}

void KvmVcpu::ClearKick() {
  std::atomic_ref<uint8_t>(run_->immediate_exit).store(0);
}

absl::Status KvmVcpu::Run(Reported reported, RingFull ring_full) {
  while (true) {
    if (ioctl(fd_.get(), KVM_RUN, nullptr) == 0) {
      auto status = HandleExit(reported, ring_full);
      if (!status.ok()) return status;
      continue;
    }
    if (errno == EINTR) {
      // KVM_RUN finishes the last exit's I/O before it looks at the flag, so
      // only here, never after an exit, can the vCPU be saved.
      if (std::atomic_ref<uint8_t>(run_->immediate_exit).load() != 0) {
        return absl::OkStatus();
      }
      continue;
    }
    if (errno == EAGAIN) continue;
    if (errno == EFAULT || errno == EHWPOISON) {
      return absl::DataLossError(absl::StrCat(
          "vCPU ", index_,
          " needs a page of guest RAM that this process cannot have: it was "
          "poisoned, or nobody can bring it any more"));
    }
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("KVM cannot run vCPU ", index_));
  }
}

absl::Status KvmVcpu::Unexpected(absl::string_view what) const {
  kvm_regs regs = {};
  ioctl(fd_.get(), KVM_GET_REGS, &regs);
  return absl::InternalError(absl::StrCat(
      "vCPU ", index_, " ", what, ", at instruction 0x", absl::Hex(regs.rip),
      "; the guest has stopped: its program, page tables or stack are "
      "probably not as they were"));
}

absl::Status KvmVcpu::HandleExit(Reported reported, RingFull ring_full) {
  switch (run_->exit_reason) {
    case KVM_EXIT_IO:
      return HandleIo(reported);
    case KVM_EXIT_INTR:
      return absl::OkStatus();
    case KVM_EXIT_DIRTY_RING_FULL:
      return ring_full();
    case KVM_EXIT_MMIO:
      return Unexpected(absl::StrCat(
          run_->mmio.is_write ? "wrote to" : "read", " address 0x",
          absl::Hex(run_->mmio.phys_addr), ", where it has no RAM"));
    case KVM_EXIT_SHUTDOWN:
      return Unexpected("shut down (an exception that nothing handles)");
    case KVM_EXIT_HLT:
      return Unexpected("halted");
    case KVM_EXIT_INTERNAL_ERROR:
      return Unexpected(absl::StrCat("met an error of KVM (suberror ",
                                     run_->internal.suberror, ")"));
    case KVM_EXIT_FAIL_ENTRY:
      return Unexpected(absl::StrCat(
          "could not be entered (hardware reason 0x",
          absl::Hex(run_->fail_entry.hardware_entry_failure_reason), ")"));
    default:
      return Unexpected(absl::StrCat("left the guest for a reason unknown (",
                                     run_->exit_reason, ")"));
  }
}

absl::Status KvmVcpu::HandleIo(Reported reported) {
  if (run_->io.direction != KVM_EXIT_IO_OUT || run_->io.port != kReportPort ||
      run_->io.size != sizeof(uint32_t)) {
    return Unexpected(absl::StrCat("used I/O port 0x", absl::Hex(run_->io.port),
                                   ", which it does not have"));
  }
  // In registers and not in RAM: on a destination, a page of RAM may be far.
  kvm_regs regs;
  if (ioctl(fd_.get(), KVM_GET_REGS, &regs) != 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot read the registers of vCPU ", index_));
  }
  const uint64_t numbers[4] = {regs.rbx, regs.rcx, regs.rsi, regs.rdi};
  reported(static_cast<uint32_t>(regs.rax), numbers);
  return absl::OkStatus();
}

absl::StatusOr<KvmVcpuState> KvmVcpu::Save() const {
  KvmVcpuState state;
  // Padding, too, becomes part of a blob.
  std::memset(&state, 0, sizeof(state));
  if (ioctl(fd_.get(), KVM_GET_REGS, &state.regs) != 0 ||
      ioctl(fd_.get(), KVM_GET_SREGS, &state.sregs) != 0 ||
      ioctl(fd_.get(), KVM_GET_VCPU_EVENTS, &state.events) != 0 ||
      ioctl(fd_.get(), KVM_GET_DEBUGREGS, &state.debugregs) != 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot save vCPU ", index_));
  }
  if (auto status = GetFxsave(state.fxsave); !status.ok()) return status;
  return state;
}

absl::Status KvmVcpu::Load(const KvmVcpuState& state) {
  KvmVcpuState copy = state;  // the kernel's headers know no const
  // SREGS first: which values of the others are legal depends on them.
  if (ioctl(fd_.get(), KVM_SET_SREGS, &copy.sregs) != 0 ||
      ioctl(fd_.get(), KVM_SET_REGS, &copy.regs) != 0 ||
      ioctl(fd_.get(), KVM_SET_VCPU_EVENTS, &copy.events) != 0 ||
      ioctl(fd_.get(), KVM_SET_DEBUGREGS, &copy.debugregs) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("KVM does not take the state of vCPU ", index_, ": ",
                     std::strerror(errno)));
  }
  return SetFxsave(state.fxsave);
}

// Not KVM_GET_FPU and KVM_SET_FPU: these leave XSTATE_BV as it is, and what is
// "in its initial state" there is neither saved nor loaded.
absl::Status KvmVcpu::GetFxsave(std::array<uint8_t, 512>& fxsave) const {
  Xsave xsave;
  if (ioctl(fd_.get(), kKvmGetXsave, &xsave) != 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot read the XMM registers of vCPU ", index_));
  }
  std::memcpy(fxsave.data(), xsave.data(), fxsave.size());
  return absl::OkStatus();
}

absl::Status KvmVcpu::SetFxsave(const std::array<uint8_t, 512>& fxsave) {
  Xsave xsave = {};
  std::memcpy(xsave.data(), fxsave.data(), fxsave.size());
  std::memcpy(xsave.data() + kXstateBvOffset, &kXstateX87AndSse,
              sizeof(kXstateX87AndSse));
  if (ioctl(fd_.get(), kKvmSetXsave, &xsave) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("KVM does not take the XMM registers of vCPU ", index_,
                     ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

absl::Status KvmVcpu::Reset(const GuestParams& params,
                            const GuestRegisters& registers, uint64_t entry) {
  absl::StatusOr<KvmVcpuState> state = Save();
  if (!state.ok()) return state.status();
  SetUserMode(state->sregs);
  state->regs = {};
  state->regs.rip = params.program_address + entry;
  state->regs.rflags = kRflags;
  // As a function finds it: 8 below a multiple of 16.
  state->regs.rsp =
      params.stack_address + (index_ + 1) * kStackPages * kGuestPageBytes - 8;
  state->regs.rdi = kParamsAddress;
  state->regs.rsi = static_cast<uint64_t>(index_);
  for (size_t i = 0; i < registers.size(); ++i) {
    std::memcpy(state->fxsave.data() + XmmOffset(i), &registers[i],
                sizeof(registers[i]));
  }
  return Load(*state);
}

absl::StatusOr<GuestRegisters> KvmVcpu::Registers() const {
  KvmVcpuState state;
  if (auto status = GetFxsave(state.fxsave); !status.ok()) return status;
  return GuestRegistersOf(state);
}

}  // namespace postcopy::demovm
