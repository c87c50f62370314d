// The memory slots of a KVM VM, and the switch that makes KVM log writes to
// them: what the sources that read KVM's own logs have in common.
#ifndef DIRTYTRACK_KVM_SLOTS_H_
#define DIRTYTRACK_KVM_SLOTS_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// A slot exactly as the VMM gave it to KVM_SET_USER_MEMORY_REGION.
//
// Exactly matters: to log a slot's writes is to set the slot again. KVM refuses
// another length, address or KVM_MEM_READONLY, but a slot number that it does
// not know it takes for a new slot.
struct KvmSlot {
  Slot slot;
  HostAddress host;    // of the slot's first byte, in this process
  uint32_t flags = 0;  // those the slot has besides KVM_MEM_LOG_DIRTY_PAGES
};

// The number that KVM_GET_DIRTY_LOG and the dirty ring call a slot by.
constexpr uint32_t KvmSlotNumber(SlotId id) {
  return uint32_t{id.address_space} << 16 | id.slot;
}

// The status for `error`, an errno of a KVM ioctl, with what to do about it
// where KVM's meaning is known: "<what>: <advice>". FAILED_PRECONDITION for
// what is no VM (ENOTTY), another process's VM (EIO), a VM with a dirty ring
// (ENXIO); INVALID_ARGUMENT for EINVAL; NOT_FOUND for a slot that is not logged
// (ENOENT); else as absl::ErrnoToStatus.
absl::Status KvmError(int error, absl::string_view what);

// What the KVM behind `vm` says to KVM_CHECK_EXTENSION (0: it has none of it);
// FAILED_PRECONDITION if `vm` is no VM.
absl::StatusOr<int> CheckKvmExtension(int vm, int capability);

// Which pages of a VM are logged, and whether they are. One thread at a time.
// Does not stop logging when destroyed.
class KvmSlots {
 public:
  // Duplicates `vm`: the caller may close its own, and KVM keeps the VM as long
  // as this object. INVALID_ARGUMENT unless `slots` fit `layout` (CheckSlots),
  // show all of it between them, lie at page-aligned host addresses and have no
  // KVM_MEM_LOG_DIRTY_PAGES in their flags, and `vm` is a descriptor.
  static absl::StatusOr<KvmSlots> Create(const RamLayout& layout,
                                         std::vector<KvmSlot> slots, int vm);

  int vm() const { return vm_.get(); }
  // In the order in which they were given.
  absl::Span<const KvmSlot> slots() const { return slots_; }
  PageCount ram_pages() const { return ram_pages_; }

  // OK if `bitmap` has a bit for each page of RAM.
  absl::Status CheckBitmap(PageBitmapView bitmap) const;

  // Sets the VM's KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 to `manual_protect`
  // (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_DIRTY_LOG_INITIALLY_SET, or 0:
  // off), which KVM reads when a slot's log begins; then begins all logs.
  // FAILED_PRECONDITION if KVM lacks it. On failure the logs that had begun are
  // ended again; one that does not end is left for StopLogging.
  absl::Status StartLogging(uint64_t manual_protect);

  // Ends the logs. On failure the others are ended all the same, and calling it
  // again tries what is left.
  absl::Status StopLogging();

 private:
  KvmSlots(std::vector<KvmSlot> slots, PageCount ram_pages, UniqueFd vm)
      : slots_(std::move(slots)),
        ram_pages_(ram_pages),
        vm_(std::move(vm)),
        logged_(slots_.size(), false) {}

  absl::Status SetManualProtect(uint64_t manual_protect);
  absl::Status SetLogged(size_t slot, bool logged);

  std::vector<KvmSlot> slots_;
  PageCount ram_pages_;
  UniqueFd vm_;
  std::vector<bool> logged_;  // by index in slots_
};

}  // namespace postcopy

#endif  // DIRTYTRACK_KVM_SLOTS_H_
