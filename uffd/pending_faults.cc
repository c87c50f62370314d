#include "uffd/pending_faults.h"

#include <bit>

#include "dirtytrack/check.h"

namespace postcopy {

static_assert(std::has_single_bit(kMaxOutstandingFaults));

PendingFaults::PendingFaults() = default;

// Fibonacci hashing: pages of one neighbourhood spread over the table.
size_t PendingFaults::HomeOf(PageIndex page) {
  constexpr int kShift = 64 - (std::bit_width(kSlots) - 1);
  return (page.value() * 0x9e3779b97f4a7c15) >> kShift;
}

size_t PendingFaults::Find(PageIndex page) const {
  // Ends: at least half of the slots are free.
  size_t slot = HomeOf(page);
  while (slots_[slot].used && slots_[slot].page != page) {
    slot = (slot + 1) % kSlots;
  }
  return slot;
}

PendingFaults::AddResult PendingFaults::Add(PageIndex page, int64_t now_ns) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Slot& slot = slots_[Find(page)];
  if (slot.used) {
    slot.fault.duplicated = true;
    return AddResult::kDuplicate;
  }
  if (size_ == kMaxOutstandingFaults) return AddResult::kFull;
  slot = {.used = true, .page = page, .fault = {.first_read_ns = now_ns}};
  ++size_;
  return AddResult::kNew;
}

std::optional<PendingFaults::Fault> PendingFaults::Take(PageIndex page) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t slot = Find(page);
  if (!slots_[slot].used) return std::nullopt;
  const Fault fault = slots_[slot].fault;
  Erase(slot);
  --size_;
  return fault;
}

void PendingFaults::Erase(size_t slot) {
  // Move back what had to go past the slot (Knuth 6.4, algorithm R), so that
  // no tombstones fill the table.
  size_t free = slot;
  for (size_t next = (slot + 1) % kSlots; slots_[next].used;
       next = (next + 1) % kSlots) {
    const size_t from_home = (next - HomeOf(slots_[next].page)) % kSlots;
    const size_t from_free = (next - free) % kSlots;
    if (from_home < from_free) continue;
    slots_[free] = slots_[next];
    free = next;
  }
  slots_[free].used = false;
}

size_t PendingFaults::Room() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return kMaxOutstandingFaults - size_;
}

size_t PendingFaults::CopyTo(absl::Span<PageIndex> pages) const {
  POSTCOPY_CHECK(pages.size() >= kMaxOutstandingFaults);
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t count = 0;
  for (const Slot& slot : slots_) {
    if (slot.used) pages[count++] = slot.page;
  }
  return count;
}

}  // namespace postcopy
