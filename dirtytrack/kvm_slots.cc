#include "dirtytrack/kvm_slots.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

absl::Status CheckSlot(const KvmSlot& slot) {
  if (!IsPageAligned(slot.host) || slot.host.value() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToString(slot.slot.id), " lies at ", ToString(slot.host),
                     "; give the address of its first page"));
  }
  if ((slot.flags & KVM_MEM_LOG_DIRTY_PAGES) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        ToString(slot.slot.id),
        " has KVM_MEM_LOG_DIRTY_PAGES among its flags; leave it out: it would "
        "stay on when tracking has ended"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status KvmError(int error, absl::string_view what) {
  switch (error) {
    case ENOTTY:
      return absl::FailedPreconditionError(absl::StrCat(
          what,
          ": the descriptor is no VM, or this host's KVM lacks the operation; "
          "pass what KVM_CREATE_VM returned"));
    case EIO:
      return absl::FailedPreconditionError(absl::StrCat(
          what,
          ": the VM has died or is another process's; KVM serves only the "
          "process that created the VM, so track in the VMM"));
    case ENXIO:
      return absl::FailedPreconditionError(absl::StrCat(
          what, ": this VM's writes go to dirty rings; read these instead"));
    case EINVAL:
      return absl::InvalidArgumentError(absl::StrCat(
          what,
          ": KVM knows it otherwise; describe each slot with the number, "
          "addresses, length and flags that KVM_SET_USER_MEMORY_REGION had"));
    case ENOENT:
      return absl::NotFoundError(absl::StrCat(
          what,
          ": it is not being logged; let nobody else set or delete the VM's "
          "slots while its dirty pages are tracked"));
    default:
      return absl::ErrnoToStatus(error, what);
  }
}

absl::StatusOr<int> CheckKvmExtension(int vm, int capability) {
  const int answer = ioctl(vm, KVM_CHECK_EXTENSION, capability);
  if (answer >= 0) return answer;
  // A vCPU's descriptor says EINVAL where others say ENOTTY.
  return KvmError(errno == EINVAL ? ENOTTY : errno,
                  "cannot ask KVM what it can do");
}

absl::StatusOr<KvmSlots> KvmSlots::Create(const RamLayout& layout,
                                          std::vector<KvmSlot> slots, int vm) {
  std::vector<Slot> plain;
  for (const KvmSlot& slot : slots) {
    if (absl::Status s = CheckSlot(slot); !s.ok()) return s;
    plain.push_back(slot.slot);
  }
  if (absl::Status s = CheckSlots(layout, plain); !s.ok()) return s;
  if (absl::Status s = CoverRam(layout, plain).status(); !s.ok()) return s;
  UniqueFd own(fcntl(vm, F_DUPFD_CLOEXEC, 0));
  if (!own.valid()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "descriptor ", vm, " of the VM cannot be duplicated: errno ", errno));
  }
  return KvmSlots(std::move(slots), layout.pages(), std::move(own));
}

absl::Status KvmSlots::CheckBitmap(PageBitmapView bitmap) const {
  if (bitmap.pages() >= ram_pages_) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a bitmap of ", ToString(bitmap.pages()),
                   " is too small for a VM of ", ToString(ram_pages_)));
}

absl::Status KvmSlots::SetManualProtect(uint64_t manual_protect) {
  const absl::StatusOr<int> can =
      CheckKvmExtension(vm(), KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
  if (!can.ok()) return can.status();
  if ((manual_protect & ~static_cast<uint64_t>(*can)) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "this host's KVM offers only 0x", absl::Hex(*can), " of 0x",
        absl::Hex(manual_protect),
        " of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; boot Linux 5.8 or newer, or "
        "use the log without manual protection"));
  }
  if (*can == 0) return absl::OkStatus();  // and so it is off
  kvm_enable_cap enable = {};
  enable.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
  enable.args[0] = manual_protect;
  if (ioctl(vm(), KVM_ENABLE_CAP, &enable) == 0) return absl::OkStatus();
  return KvmError(errno, "cannot set KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
}

absl::Status KvmSlots::SetLogged(size_t slot, bool logged) {
  const KvmSlot& s = slots_[slot];
  const uint32_t log = logged ? KVM_MEM_LOG_DIRTY_PAGES : 0;
  const kvm_userspace_memory_region region{
      .slot = KvmSlotNumber(s.slot.id),
      .flags = s.flags | log,
      .guest_phys_addr = s.slot.guest_physical_address,
      .memory_size = s.slot.length.value(),
      .userspace_addr = s.host.value()};
  if (ioctl(vm(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    return KvmError(errno,
                    absl::StrCat("cannot ", logged ? "begin" : "end",
                                 " the dirty log of ", ToString(s.slot.id)));
  }
  logged_[slot] = logged;
  return absl::OkStatus();
}

absl::Status KvmSlots::StartLogging(uint64_t manual_protect) {
  if (absl::Status s = SetManualProtect(manual_protect); !s.ok()) return s;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (absl::Status s = SetLogged(i, true); !s.ok()) {
      // What does not end now is ended by StopLogging.
      StopLogging().IgnoreError();
      return s;
    }
  }
  return absl::OkStatus();
}

absl::Status KvmSlots::StopLogging() {
  absl::Status first;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (logged_[i]) first.Update(SetLogged(i, false));
  }
  return first;
}

}  // namespace postcopy
