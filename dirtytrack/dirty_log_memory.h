// Making, opening and finding one's way in the memory of a dirty log.
// dirty_log.h and dirty_log_writer.h are for users; this is what they share.
#ifndef DIRTYTRACK_DIRTY_LOG_MEMORY_H_
#define DIRTYTRACK_DIRTY_LOG_MEMORY_H_

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/dirty_log_layout.h"
#include "dirtytrack/liveness_locks.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// A slot's dirty log: bit p is page p of the slot.
struct DirtyLogSlot {
  SlotId id;
  PageCount pages;

  friend bool operator==(const DirtyLogSlot&, const DirtyLogSlot&) = default;
};

// Bitmaps that the caller has allocated for one slot: PageBitmapView::WordCount
// words each, all zero, for as long as the log or one of its writers lives.
struct CallerBitmaps {
  SlotId slot;
  std::array<std::atomic<uint64_t>*, 2> words;
};

namespace dirty_log_internal {

struct SlotMemory {
  DirtyLogSlot slot;
  dirty_log_layout::SlotRecord* record;
  std::array<PageBitmapView, 2> bitmaps;
  std::array<uint64_t, 2> offsets;  // of the bitmaps, or kInCallersMemory
};

// The mapping and where things are in it: computed from what the caller
// expects, never from what the memory says. Immutable but for the locks.
struct Memory {
  SharedMapping mapping;
  dirty_log_layout::State* state;
  dirty_log_layout::WriterRecord* writers;  // [kMaxDirtyLogWriters]
  std::vector<SlotMemory> slots;            // ascending by id

  // Held while a record is taken or given back, not while pages are marked.
  mutable std::mutex writers_mutex;
  // Of process `pid`, none if there is no /proc. A child of fork() shares them,
  // so they do not tell its life, and it does without.
  std::optional<LivenessLocks> locks;
  pid_t pid;

  // The index in `slots`, or slots.size().
  size_t Find(SlotId id) const;
};

// Where the lock of writer record `i` is.
uint64_t LockOffset(size_t i);

struct OpenMemory {
  UniqueFd fd;
  std::shared_ptr<const Memory> memory;
};

// As DirtyLogSet::Create and DirtyLogSet::Open say.
absl::StatusOr<OpenMemory> CreateMemory(
    absl::Span<const DirtyLogSlot> slots,
    absl::Span<const CallerBitmaps> bitmaps);
absl::StatusOr<OpenMemory> OpenMemoryOf(
    UniqueFd fd, absl::Span<const DirtyLogSlot> expected);

}  // namespace dirty_log_internal
}  // namespace postcopy

#endif  // DIRTYTRACK_DIRTY_LOG_MEMORY_H_
