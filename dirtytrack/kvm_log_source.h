// Dirty pages from KVM's bitmaps, one for each memory slot.
#ifndef DIRTYTRACK_KVM_LOG_SOURCE_H_
#define DIRTYTRACK_KVM_LOG_SOURCE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/kvm_slots.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"

namespace postcopy {

// How KVM's log is read (Documentation/virt/kvm/api.rst, 4.8, 4.117, 7.13).
//
//                       Start         Collect           Clear
//   kGetDirtyLog        protects all  takes, protects   nothing
//   kManualProtect      protects all  looks             takes, protects
//   kManualInitiallySet all dirty     looks             takes, protects
//
// "Protects" costs time under KVM's locks, while vCPUs that fault wait: for all
// of RAM at once in the first column's first line, for the pages of one Clear
// in the others. The last mode spends nothing on pages before they are read
// for the first time, which a first round does anyway.
enum class KvmLogMode {
  kGetDirtyLog,
  kManualProtect,       // Linux 5.0
  kManualInitiallySet,  // Linux 5.8
};

// Reads KVM's log, in the process that created the VM: KVM serves no other.
//
// Only writes of vCPUs (and what KVM writes for them) are logged. What the VMM
// writes itself, and what devices or a vhost back-end write, must reach whoever
// collects in another way, such as a SharedLogSource.
//
// From Start to Stop nobody else reads, clears or switches these logs, or sets
// or deletes these slots. The mode is one of the VM and outlasts Stop. One
// thread at a time; vCPUs run concurrently.
class KvmLogSource final : public DirtySource {
 public:
  struct Options {
    // What KVM_CREATE_VM returned. Duplicated: close yours when you like.
    int vm = -1;
    // All that show RAM. The same RAM may be shown by several of them.
    std::vector<KvmSlot> slots;
    KvmLogMode mode = KvmLogMode::kManualInitiallySet;
  };

  // INVALID_ARGUMENT as KvmSlots::Create; RESOURCE_EXHAUSTED for memory.
  // Whether `vm` is a VM and its KVM has the mode is seen by Start.
  static absl::StatusOr<std::unique_ptr<KvmLogSource>> Create(
      const RamLayout& layout, Options options);
  // Stops.
  ~KvmLogSource() override;

  // Takes KVM_SET_USER_MEMORY_REGION for each slot. FAILED_PRECONDITION if KVM
  // lacks the mode or this is not its VM, INVALID_ARGUMENT if a slot is not as
  // described; KvmError has the rest.
  absl::Status Start() override;

  // One KVM_GET_DIRTY_LOG for each slot, and a look at its words: one for 64
  // pages. A slot that KVM fails to read counts as dirty, all of it, if KVM may
  // have taken its bits.
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;

  // In the manual modes: KVM_CLEAR_DIRTY_LOG with the bits of `pages` in `run`,
  // and no others, in every slot that shows one of them, for at most
  // kClearPagesMax pages at a time.
  absl::Status Clear(PageBitmapView pages, PageRun run) override;

  // Keeps the pages here: KVM has no way to set them dirty.
  absl::Status Restore(PageBitmapView unsent) override;

  // If it fails, some slots are still logged; call it again.
  absl::Status Stop() override;

  // Pages for one KVM_CLEAR_DIRTY_LOG: 256 MiB, a bitmap of 8 KiB. A multiple
  // of 64, as KVM wants.
  static constexpr uint64_t kClearPagesMax = uint64_t{1} << 16;

 private:
  KvmLogSource(KvmSlots slots, KvmLogMode mode, PageBitmap restored,
               PageBitmap log);

  absl::Status CheckUse(PageBitmapView bitmap) const;
  // Clears the bits of `pages` in `run`, RAM pages that `slot` shows.
  absl::Status ClearInSlot(const KvmSlot& slot, PageBitmapView pages,
                           PageRun run);
  // One KVM_CLEAR_DIRTY_LOG at most, for `run`, pages of the slot.
  absl::Status ClearPart(const KvmSlot& slot, PageBitmapView pages,
                         PageRun run);

  KvmSlots slots_;
  const KvmLogMode mode_;
  bool started_ = false;
  PageBitmap restored_;               // RAM pages that the next Collect reports
  PageBitmap log_;                    // what KVM says of one slot
  std::vector<uint64_t> clear_bits_;  // what KVM is told to clear
};

}  // namespace postcopy

#endif  // DIRTYTRACK_KVM_LOG_SOURCE_H_
