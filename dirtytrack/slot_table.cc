#include "dirtytrack/slot_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace postcopy {

std::vector<DirtyLogSlot> LogSlotsOf(absl::Span<const Slot> slots) {
  std::vector<DirtyLogSlot> result;
  for (const Slot& slot : slots) {
    result.push_back({slot.id, slot.pages().count});
  }
  return result;
}

absl::Status SlotTable::Set(const Slot& slot) {
  std::vector<Slot> changed = slots_;
  const auto at = std::lower_bound(
      changed.begin(), changed.end(), slot,
      [](const Slot& a, const Slot& b) { return a.id < b.id; });
  if (at != changed.end() && at->id == slot.id) {
    *at = slot;
  } else {
    changed.insert(at, slot);
  }
  if (absl::Status s = CheckSlots(layout_, changed); !s.ok()) return s;
  slots_ = std::move(changed);
  return absl::OkStatus();
}

absl::Status SlotTable::Remove(SlotId id) {
  const size_t removed =
      std::erase_if(slots_, [id](const Slot& slot) { return slot.id == id; });
  if (removed == 1) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("the VM has no ", ToString(id)));
}

}  // namespace postcopy
