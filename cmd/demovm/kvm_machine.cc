// The guest as a guest of /dev/kvm.
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/demovm/guest_program.h"
#include "cmd/demovm/kvm_vcpu.h"
#include "cmd/demovm/machine.h"
#include "cmd/demovm/machine_base.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy::demovm {
namespace {

absl::StatusOr<UniqueFd> OpenKvm() {
  UniqueFd kvm(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (kvm.valid()) return kvm;
  const int error = errno;
  const absl::string_view what =
      error == ENOENT ? "load the module kvm_intel or kvm_amd, or enable "
                        "nested virtualization of this VM"
      : error == EACCES || error == EPERM
          ? "run as a user in the group kvm, or allow the device in the unit "
            "(DeviceAllow=/dev/kvm rw)"
          : "see the kernel's log";
  return absl::ErrnoToStatus(
      error, absl::StrCat("cannot open /dev/kvm: ", what,
                          "; or use --guest=process, which needs no KVM"));
}

absl::Status CheckKvm(int kvm) {
  if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
    return absl::FailedPreconditionError(
        "/dev/kvm speaks another version of KVM's API than 12; use "
        "--guest=process");
  }
  static constexpr struct {
    int capability;
    absl::string_view name;
  } kNeeded[] = {{KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
                 {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
                 {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
                 {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
                 {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
                 {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"}};
  for (const auto& needed : kNeeded) {
    if (ioctl(kvm, KVM_CHECK_EXTENSION, needed.capability) > 0) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("this host's KVM lacks ", needed.name,
                     ": boot a newer kernel, or use --guest=process"));
  }
  return absl::OkStatus();
}

class KvmMachine : public MachineBase {
 public:
  KvmMachine(const MachineOptions& options, GuestRam ram,
             const GuestParams& params)
      : MachineBase(MachineKind::kKvm, options, std::move(ram), params,
                    sizeof(KvmVcpuState)) {}
  ~KvmMachine() override { EndThreads(); }

  // Creates the VM, its slots and vCPUs. Once, before anything else.
  absl::Status Init();

  absl::Status StartDirtyLogging() override;
  absl::Status CollectDirty(
      absl::FunctionRef<void(SlotId, uint64_t, absl::Span<const uint64_t>)>
          report) override;
  absl::Status StopDirtyLogging() override;

 protected:
  absl::Status ResetVcpu(int vcpu, const GuestRegisters& registers) override;
  absl::StatusOr<std::string> SaveVcpu(int vcpu) override;
  absl::Status LoadVcpu(int vcpu, absl::string_view state,
                        const GuestParams& params) override;
  absl::StatusOr<GuestRegisters> Registers(int vcpu) override;
  absl::Status RunVcpu(int vcpu) override;
  void KickVcpu(int vcpu, pthread_t thread) override;

 private:
  absl::Status SetSlots(uint32_t flags);
  absl::Status AddVcpus(int kvm);

  UniqueFd vm_;
  std::vector<std::unique_ptr<KvmVcpu>> vcpus_;
  bool logging_ = false;
  std::vector<uint64_t> bitmap_;  // for the largest slot
};

absl::Status KvmMachine::Init() {
  InstallKickHandler();
  absl::StatusOr<UniqueFd> kvm = OpenKvm();
  if (!kvm.ok()) return kvm.status();
  if (auto status = CheckKvm(kvm->get()); !status.ok()) return status;
  vm_.Reset(ioctl(kvm->get(), KVM_CREATE_VM, 0));
  if (!vm_.valid()) {
    return absl::ErrnoToStatus(
        errno, "KVM cannot create a VM; or use --guest=process");
  }
  if (auto status = SetSlots(/*flags=*/0); !status.ok()) return status;
  return AddVcpus(kvm->get());
}

absl::Status KvmMachine::SetSlots(uint32_t flags) {
  for (const RamBlock& block : ram().blocks()) {
    const kvm_userspace_memory_region region{
        .slot = block.slot.id.slot,
        .flags = flags,
        .guest_phys_addr = block.slot.guest_physical_address,
        .memory_size = block.slot.length.value(),
        .userspace_addr = reinterpret_cast<uint64_t>(block.host)};
    if (ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
      return absl::ErrnoToStatus(
          errno, absl::StrCat("KVM cannot take ", block.region.name, " as ",
                              ToString(block.slot.id)));
    }
  }
  return absl::OkStatus();
}

absl::Status KvmMachine::AddVcpus(int kvm) {
  KvmCpuid cpuid;
  const int run_bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (run_bytes < 0 || ioctl(kvm, kKvmGetSupportedCpuid, &cpuid) != 0) {
    return absl::ErrnoToStatus(errno, "KVM does not say what vCPUs it has");
  }
  for (int vcpu = 0; vcpu < vcpus(); ++vcpu) {
    absl::StatusOr<std::unique_ptr<KvmVcpu>> created =
        KvmVcpu::Create(vm_.get(), vcpu, cpuid, run_bytes);
    if (!created.ok()) return created.status();
    vcpus_.push_back(*std::move(created));
  }
  return absl::OkStatus();
}

absl::Status KvmMachine::ResetVcpu(int vcpu, const GuestRegisters& registers) {
  return vcpus_[vcpu]->Reset(params(), registers, GuestProgram().entry);
}

absl::StatusOr<std::string> KvmMachine::SaveVcpu(int vcpu) {
  absl::StatusOr<KvmVcpuState> state = vcpus_[vcpu]->Save();
  if (!state.ok()) return state.status();
  return std::string(reinterpret_cast<const char*>(&*state), sizeof(*state));
}

absl::Status KvmMachine::LoadVcpu(int vcpu, absl::string_view state,
                                  const GuestParams& params) {
  KvmVcpuState loaded;
  std::memcpy(&loaded, state.data(), sizeof(loaded));
  auto status =
      CheckRegisters(GuestRegistersOf(loaded), params,
                     static_cast<uint32_t>(vcpu), /*within_step=*/true);
  if (!status.ok()) return status;
  return vcpus_[vcpu]->Load(loaded);
}

absl::StatusOr<GuestRegisters> KvmMachine::Registers(int vcpu) {
  return vcpus_[vcpu]->Registers();
}

absl::Status KvmMachine::RunVcpu(int vcpu) {
  vcpus_[vcpu]->ClearKick();
  // Who closed the gate before this point kicked in vain: kicks come after.
  if (gate().closed()) vcpus_[vcpu]->Kick(pthread_self());
  return vcpus_[vcpu]->Run(
      [this, vcpu](uint32_t kind, const uint64_t numbers[4]) {
        OnReport(vcpu, kind, numbers);
      });
}

void KvmMachine::KickVcpu(int vcpu, pthread_t thread) {
  vcpus_[vcpu]->Kick(thread);
}

absl::Status KvmMachine::StartDirtyLogging() {
  // Off first: what an earlier log has gathered is forgotten.
  if (auto status = StopDirtyLogging(); !status.ok()) return status;
  auto status = SetSlots(KVM_MEM_LOG_DIRTY_PAGES);
  logging_ = status.ok();
  return status;
}

absl::Status KvmMachine::StopDirtyLogging() {
  logging_ = false;
  return SetSlots(/*flags=*/0);
}

absl::Status KvmMachine::CollectDirty(
    absl::FunctionRef<void(SlotId, uint64_t, absl::Span<const uint64_t>)>
        report) {
  if (!logging_) return DirtyLoggingIsOff();
  for (const RamBlock& block : ram().blocks()) {
    bitmap_.assign(PageBitmapView::WordCount(block.slot.pages().count), 0);
    kvm_dirty_log log = {};
    log.slot = block.slot.id.slot;
    log.dirty_bitmap = bitmap_.data();
    if (ioctl(vm_.get(), KVM_GET_DIRTY_LOG, &log) != 0) {
      return absl::ErrnoToStatus(
          errno, absl::StrCat("KVM does not give the dirty log of ",
                              ToString(block.slot.id)));
    }
    const bool any = std::any_of(bitmap_.begin(), bitmap_.end(),
                                 [](uint64_t word) { return word != 0; });
    if (any) report(block.slot.id, 0, bitmap_);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Machine>> CreateKvmMachine(
    const MachineOptions& options, GuestRam ram) {
  absl::StatusOr<GuestParams> params = MakeGuestParams(options, ram);
  if (!params.ok()) return params.status();
  auto machine = std::make_unique<KvmMachine>(options, std::move(ram), *params);
  if (auto status = machine->Init(); !status.ok()) return status;
  return machine;
}

}  // namespace postcopy::demovm
