// Which KVM slots a VM has, while they change.
#ifndef DIRTYTRACK_SLOT_TABLE_H_
#define DIRTYTRACK_SLOT_TABLE_H_

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/dirty_log_memory.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"

namespace postcopy {

// The dirty logs that slots take.
std::vector<DirtyLogSlot> LogSlotsOf(absl::Span<const Slot> slots);

// The slots of one VM's address spaces, keyed by (address space, slot), as
// KVM_SET_USER_MEMORY_REGION manages them. Address spaces are independent: the
// same RAM may be shown by slots of several, and guest-physical addresses
// overlap only within one. Valid at all times: a change that would break a rule
// of CheckSlots is refused and changes nothing.
//
// Not thread-safe. A dirty log is made for one state of the table and never
// changes; after a change make another and hand both over
// (SharedLogSource::Replace).
class SlotTable {
 public:
  // Empty.
  explicit SlotTable(RamLayout layout) : layout_(std::move(layout)) {}

  // Adds a slot, or, if there is one of this id, moves or resizes it to what
  // `slot` says. INVALID_ARGUMENT as CheckSlots, naming the slot, or both if it
  // overlaps another.
  absl::Status Set(const Slot& slot);

  // NOT_FOUND if there is none of this id.
  absl::Status Remove(SlotId id);

  // Ascending by id.
  absl::Span<const Slot> slots() const { return slots_; }

 private:
  const RamLayout layout_;
  std::vector<Slot> slots_;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_SLOT_TABLE_H_
