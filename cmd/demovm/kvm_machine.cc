// The guest as a guest of /dev/kvm.
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

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
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/kvm_log_source.h"
#include "dirtytrack/kvm_ring_source.h"
#include "dirtytrack/kvm_slots.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy::demovm {
namespace {

// 4096 pages for each vCPU: some tenths of a second of its writes.
constexpr ByteCount kRingBytes{uint64_t{64} << 10};

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
                    sizeof(KvmVcpuState)),
        tracking_(options.kvm_tracking) {}
  ~KvmMachine() override { EndThreads(); }

  // Creates the VM, its slots and vCPUs. Once, before anything else.
  absl::Status Init();

  absl::Status StartDirtyLogging() override;
  absl::Status CollectDirty(DirtyReport report) override;
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
  std::vector<KvmSlot> Slots() const;
  absl::Status AddSlots();
  absl::Status AddVcpus(int kvm);
  // REQUIRES: slots and vCPUs have been added.
  absl::Status AddDirtySource();
  absl::Status AddLogSource(const RamLayout& layout);
  absl::Status AddRingSource(const RamLayout& layout);
  // On the vCPU's thread.
  absl::Status OnRingFull(int vcpu);

  const KvmTracking tracking_;
  UniqueFd vm_;
  std::vector<std::unique_ptr<KvmVcpu>> vcpus_;
  std::unique_ptr<DirtySource> dirty_source_;
  KvmRingSource* ring_source_ = nullptr;  // dirty_source_, if it is one
  PageBitmap collected_;                  // and not reported yet
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
  if (tracking_ == KvmTracking::kRing) {
    auto status = EnableKvmDirtyRing(vm_.get(), kRingBytes);
    if (!status.ok()) return status;
  }
  absl::Status status = AddSlots();
  if (status.ok()) status = AddVcpus(kvm->get());
  if (status.ok()) status = AddDirtySource();
  return status;
}

std::vector<KvmSlot> KvmMachine::Slots() const {
  std::vector<KvmSlot> slots;
  for (const RamBlock& block : ram().blocks()) {
    slots.push_back(
        {.slot = block.slot,
         .host = HostAddress(reinterpret_cast<uintptr_t>(block.host))});
  }
  return slots;
}

absl::Status KvmMachine::AddSlots() {
  for (const KvmSlot& slot : Slots()) {
    const kvm_userspace_memory_region region{
        .slot = KvmSlotNumber(slot.slot.id),
        .flags = slot.flags,
        .guest_phys_addr = slot.slot.guest_physical_address,
        .memory_size = slot.slot.length.value(),
        .userspace_addr = slot.host.value()};
    if (ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
      return absl::ErrnoToStatus(errno,
                                 absl::StrCat("KVM cannot take guest RAM as ",
                                              ToString(slot.slot.id)));
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
      },
      [this, vcpu] { return OnRingFull(vcpu); });
}

void KvmMachine::KickVcpu(int vcpu, pthread_t thread) {
  vcpus_[vcpu]->Kick(thread);
}

absl::Status KvmMachine::AddDirtySource() {
  absl::StatusOr<RamLayout> layout =
      RamLayout::Create(ram().regions(), RegionPages::kSmallOrHuge);
  if (!layout.ok()) return layout.status();
  absl::StatusOr<PageBitmap> collected = PageBitmap::Create(layout->pages());
  if (!collected.ok()) return collected.status();
  collected_ = *std::move(collected);
  return tracking_ == KvmTracking::kRing ? AddRingSource(*layout)
                                         : AddLogSource(*layout);
}

absl::Status KvmMachine::AddLogSource(const RamLayout& layout) {
  absl::StatusOr<std::unique_ptr<KvmLogSource>> source =
      KvmLogSource::Create(layout, {.vm = vm_.get(),
                                    .slots = Slots(),
                                    // Not initially set: who migrates sends all
                                    // pages first without being told.
                                    .mode = tracking_ == KvmTracking::kLog
                                                ? KvmLogMode::kGetDirtyLog
                                                : KvmLogMode::kManualProtect});
  if (!source.ok()) return source.status();
  dirty_source_ = *std::move(source);
  return absl::OkStatus();
}

absl::Status KvmMachine::AddRingSource(const RamLayout& layout) {
  std::vector<int> vcpus;
  for (const auto& vcpu : vcpus_) vcpus.push_back(vcpu->fd());
  absl::StatusOr<std::unique_ptr<KvmRingSource>> source =
      KvmRingSource::Create(layout, {.vm = vm_.get(),
                                     .slots = Slots(),
                                     .vcpus = std::move(vcpus),
                                     .ring_bytes = kRingBytes,
                                     .kick = [this] {
                                       Interrupt();
                                       return absl::OkStatus();
                                     }});
  if (!source.ok()) return source.status();
  ring_source_ = source->get();
  dirty_source_ = *std::move(source);
  return absl::OkStatus();
}

absl::Status KvmMachine::OnRingFull(int vcpu) {
  absl::Status status = ring_source_->OnRingFull(static_cast<size_t>(vcpu));
  // Tracking is broken, as CollectDirty will say, or the ring is full still and
  // KVM will say so again; the guest is not harmed.
  if (absl::IsDataLoss(status) || absl::IsUnavailable(status)) {
    return absl::OkStatus();
  }
  return status;
}

absl::Status KvmMachine::StartDirtyLogging() {
  // Off first: what an earlier log has gathered is forgotten.
  if (auto status = StopDirtyLogging(); !status.ok()) return status;
  return dirty_source_->Start();
}

absl::Status KvmMachine::StopDirtyLogging() {
  collected_.Reset();
  return dirty_source_->Stop();
}

absl::Status KvmMachine::CollectDirty(DirtyReport report) {
  const PageBitmapView collected = collected_.view();
  absl::Status status = dirty_source_->Collect(collected).status();
  // Pages are protected again before they are reported: from then on somebody
  // may read them, and a write after that must be seen. Those that were not
  // collected must not be cleared. What fails here stays in collected_.
  if (status.ok()) {
    status = dirty_source_->Clear(collected, {PageIndex(0), collected.pages()});
  }
  if (status.ok()) TakeDirty(collected, report);
  return status;
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
