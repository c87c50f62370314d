#include "uffd/pending_faults.h"

#include <algorithm>
#include <bit>

#include "dirtytrack/check.h"
#include "uffd/fault_times.h"

namespace postcopy {

static_assert(std::has_single_bit(kMaxOutstandingFaults));
static_assert(sizeof(PendingFaults) <= 140 << 10);

PendingFaults::PendingFaults(FaultTimes* times) : times_(times) {
  for (std::atomic<uint64_t>& page : watched_) page.store(kNobody);
  for (size_t i = 0; i < free_.size(); ++i) {
    free_[i] = static_cast<uint16_t>(i);
  }
}

// Fibonacci hashing: pages of one neighbourhood spread over the table.
size_t PendingFaults::HomeOf(PageIndex page) {
  constexpr int kShift = 64 - (std::bit_width(kSlots) - 1);
  return (page.value() * 0x9e3779b97f4a7c15) >> kShift;
}

size_t PendingFaults::Find(PageIndex page) const {
  // Ends: at least half of the slots are free.
  size_t slot = HomeOf(page);
  while (slots_[slot].entry != kFree && slots_[slot].page != page) {
    slot = (slot + 1) % kSlots;
  }
  return slot;
}

PendingFaults::AddResult PendingFaults::Add(PageIndex page,
                                            const Message& message) {
  const std::lock_guard<std::mutex> lock(mutex_);
  SettleLocked();
  Slot& slot = slots_[Find(page)];
  if (slot.entry != kFree) {
    Entry& entry = entries_[slot.entry];
    entry.fault.duplicated = true;
    if (entry.fault.ended) {
      threads_.Count(message.thread);
    } else {
      threads_.Begin(message.thread, message.read_ns, &entry.waiters);
    }
    return AddResult::kDuplicate;
  }
  if (size_ == kMaxOutstandingFaults) return AddResult::kFull;
  slot = {.entry = free_[size_++], .page = page};
  BeginWait(slot.entry, page, message);
  return AddResult::kNew;
}

void PendingFaults::BeginWait(uint16_t entry, PageIndex page,
                              const Message& message) {
  entries_[entry].fault = {.first_read_ns = message.read_ns,
                           .unread_ns = message.unread_ns};
  stall_.Begin(message.read_ns);
  threads_.Begin(message.thread, message.read_ns, &entries_[entry].waiters);
  watched_[entry].store(page.value(), std::memory_order_relaxed);
  if (entry >= watched_end_.load(std::memory_order_relaxed)) {
    watched_end_.store(entry + 1, std::memory_order_relaxed);
  }
  // Of this addition and the one in SomebodyWaits() one is first. Either that
  // sees the stores above, or what follows here sees what went before that.
  waited_.fetch_add(1);
}

void PendingFaults::EndWaitOf(const Slot& slot, int64_t now_ns) {
  Entry& ended = entries_[slot.entry];
  ended.fault.ended = true;
  threads_.End(&ended.waiters, now_ns);
  stall_.End(now_ns);
  StopWatching(slot.entry, slot.page);
  // Nothing is watched then, so nobody misses anything.
  if (stall_.waits() == 0) watched_end_.store(0, std::memory_order_relaxed);
}

void PendingFaults::Settle() {
  const std::lock_guard<std::mutex> lock(mutex_);
  SettleLocked();
}

void PendingFaults::SettleLocked() {
  while (const std::optional<PostedEnd> end = posted_.Take()) {
    const Slot& slot = slots_[Find(end->page)];
    // Taken, or ended, by somebody who was quicker to get the lock.
    if (slot.entry == kFree || entries_[slot.entry].fault.ended) continue;
    const Fault fault = entries_[slot.entry].fault;
    EndWaitOf(slot, end->ended_ns);
    if (times_ != nullptr) {
      times_->Record(end->page, fault, end->answered_ns, end->ended_ns);
    }
  }
}

void PendingFaults::MarkAsked(absl::Span<const PageIndex> pages,
                              int64_t now_ns) {
  const std::lock_guard<std::mutex> lock(mutex_);
  // What the bulk lane has brought ended before.
  SettleLocked();
  for (const PageIndex page : pages) {
    const Slot& slot = slots_[Find(page)];
    if (slot.entry != kFree) entries_[slot.entry].fault.asked_ns = now_ns;
  }
}

std::optional<PendingFaults::Fault> PendingFaults::Take(PageIndex page,
                                                        int64_t now_ns) {
  const std::lock_guard<std::mutex> lock(mutex_);
  SettleLocked();
  const size_t at = Find(page);
  const Slot slot = slots_[at];
  if (slot.entry == kFree) return std::nullopt;
  const Fault fault = entries_[slot.entry].fault;
  if (!fault.ended) EndWaitOf(slot, now_ns);
  Erase(at);
  free_[--size_] = slot.entry;
  return fault;
}

std::optional<PendingFaults::Fault> PendingFaults::EndWait(PageIndex page,
                                                           int64_t now_ns) {
  const std::lock_guard<std::mutex> lock(mutex_);
  SettleLocked();
  const Slot& slot = slots_[Find(page)];
  if (slot.entry == kFree || entries_[slot.entry].fault.ended) {
    return std::nullopt;
  }
  const Fault fault = entries_[slot.entry].fault;
  EndWaitOf(slot, now_ns);
  return fault;
}

void PendingFaults::Erase(size_t slot) {
  // Move back what had to go past the slot (Knuth 6.4, algorithm R), so that
  // no tombstones fill the table.
  size_t free = slot;
  for (size_t next = (slot + 1) % kSlots; slots_[next].entry != kFree;
       next = (next + 1) % kSlots) {
    const size_t from_home = (next - HomeOf(slots_[next].page)) % kSlots;
    const size_t from_free = (next - free) % kSlots;
    if (from_home < from_free) continue;
    slots_[free] = slots_[next];
    free = next;
  }
  slots_[free].entry = kFree;
}

std::optional<PageIndex> PendingFaults::NextWaited(size_t* at) const {
  const size_t end = watched_end_.load(std::memory_order_relaxed);
  while (*at < end) {
    const uint64_t page = watched_[(*at)++].load(std::memory_order_relaxed);
    if (page != kNobody) return PageIndex(page);
  }
  return std::nullopt;
}

int64_t PendingFaults::StalledNanos(int64_t now_ns) {
  const std::lock_guard<std::mutex> lock(mutex_);
  SettleLocked();
  return stall_.Total(now_ns);
}

FaultingThreads PendingFaults::Threads(int64_t now_ns) {
  FaultingThreads threads;
  // Before the lock, which the fault path wants.
  threads.threads.reserve(kMaxFaultingThreads);
  const std::lock_guard<std::mutex> lock(mutex_);
  SettleLocked();
  threads_.CopyTo(&threads, now_ns);
  return threads;
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
    if (slot.entry != kFree) pages[count++] = slot.page;
  }
  return count;
}

}  // namespace postcopy
