// The memory of a dirty log, as every process that maps it sees it: what a VMM
// that is not linked with this code (one in Rust, say) has to implement in
// order to mark pages.
//
//   offset 0      Header, at kStateOffset State
//   kPageSize     WriterRecord[kMaxDirtyLogWriters]
//   2 * kPageSize SlotRecord[slot_count], ascending by (address space, slot)
//   then, each at a multiple of kPageSize and in the order of the records:
//                 bitmap 0 and bitmap 1 of every slot (page_bitmap.h says
//                 which bit is which page; page 0 is the slot's first)
//
// To mark page p of slot s, a writer that owns WriterRecord w
//   1. enters:  w.sequence += 1 (now odd), a sequentially consistent exchange
//   2. reads    a = s.active, sequentially consistent; if a & kNotLogging, to 5
//   3. sets     bit p of bitmap a & 1, atomic OR with release, unless it is set
//   4. sets     s.dirty[a & 1] = 1, with release, unless it is set
//   5. leaves:  w.sequence += 1 (now even), a store with release
// It must not block between 1 and 5: the reader waits for it. 3 and 4 may be
// repeated for any number of pages and slots, with 2 for each slot.
//
// A writer owns the record whose owner_pid it has changed from 0 to its pid by
// compare-and-swap, and gives it back by storing 0 in `flags`, then in
// owner_pid, outside of a section. Two things are optional, each announced in
// `flags` once it holds, and before the first section:
//   kLightFence  The writer's process has registered with membarrier(2),
//                MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED. Then 1 may be a
//                plain store: the reader has every such process pass a barrier
//                (asymmetric_fence.h).
//   kHoldsLock   The writer holds a write lock of fcntl(2), F_OFD_SETLK, on the
//                first byte of its record in the memfd, by an open file
//                description of its process alone (reopen the descriptor by
//                /proc/self/fd). If the lock is gone and the record is not
//                given back, the reader takes the writer for dead. Without it,
//                a writer that dies in a section stops all switches.
//
// If `superseded` is not 0 there is another log for the VM's slots as they are
// now: open that and give the record back. Until then marks count here too; but
// who takes a record has to look at `superseded` after the compare-and-swap
// (both sequentially consistent), and if it is set to give the record back
// unused: nobody may be reading any more.
//
// Only the reader writes `active` and `superseded` and clears bits and `dirty`.
// All numbers are little-endian.
#ifndef DIRTYTRACK_DIRTY_LOG_LAYOUT_H_
#define DIRTYTRACK_DIRTY_LOG_LAYOUT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "dirtytrack/types.h"

namespace postcopy {

// Processes and threads that mark pages of one VM at the same time.
inline constexpr size_t kMaxDirtyLogWriters = 64;

namespace dirty_log_layout {

inline constexpr uint64_t kMagic = 0x474F4C5954524944;  // "DIRTYLOG"
inline constexpr uint32_t kVersion = 2;
inline constexpr uint64_t kStateOffset = 64;
inline constexpr uint64_t kWritersOffset = kPageSize;
inline constexpr uint64_t kSlotsOffset = 2 * kPageSize;

// Constant once the descriptor has been handed out.
struct Header {
  uint64_t magic;
  uint32_t version;
  uint32_t writer_count;  // kMaxDirtyLogWriters
  uint32_t slot_count;
  uint32_t reserved;  // 0
  uint64_t writers_offset;
  uint64_t slots_offset;
  uint64_t total_bytes;  // the size of the memfd
};

struct alignas(64) State {
  std::atomic<uint32_t> superseded;
};

inline constexpr uint32_t kLightFence = 1;
inline constexpr uint32_t kHoldsLock = 2;

// A cache line for each writer, so that none slows another.
struct alignas(64) WriterRecord {
  std::atomic<uint64_t> sequence;   // odd: inside a section
  std::atomic<uint32_t> owner_pid;  // 0: free; as the writer's getpid() says
  std::atomic<uint32_t> flags;      // kLightFence, kHoldsLock
};

inline constexpr uint32_t kNotLogging = 2;
// For both bitmaps of a slot: they are memory of the process that made the log,
// and no other process can mark pages of this slot.
inline constexpr uint64_t kInCallersMemory = UINT64_MAX;

// All but the atomics is constant once the descriptor has been handed out.
struct alignas(64) SlotRecord {
  uint16_t address_space;
  uint16_t slot;
  uint32_t reserved;  // 0
  uint64_t pages;
  uint64_t bitmap_offset[2];
  std::atomic<uint32_t> active;    // which bitmap is marked, | kNotLogging
  std::atomic<uint32_t> dirty[2];  // not 0: the bitmap may have a bit set
};

static_assert(std::is_trivially_copyable_v<Header> && sizeof(Header) == 48);
static_assert(sizeof(Header) <= kStateOffset &&
              kStateOffset + sizeof(State) <= kWritersOffset);
static_assert(sizeof(WriterRecord) == 64 && sizeof(SlotRecord) == 64);
static_assert(std::is_standard_layout_v<WriterRecord> &&
              std::is_standard_layout_v<SlotRecord>);
static_assert(offsetof(WriterRecord, owner_pid) == 8);
static_assert(offsetof(WriterRecord, flags) == 12);
static_assert(offsetof(SlotRecord, pages) == 8);
static_assert(offsetof(SlotRecord, bitmap_offset) == 16);
static_assert(offsetof(SlotRecord, active) == 32);
static_assert(offsetof(SlotRecord, dirty) == 36);
static_assert(std::atomic<uint64_t>::is_always_lock_free &&
              std::atomic<uint32_t>::is_always_lock_free);
static_assert(kWritersOffset + kMaxDirtyLogWriters * sizeof(WriterRecord) <=
              kSlotsOffset);

}  // namespace dirty_log_layout
}  // namespace postcopy

#endif  // DIRTYTRACK_DIRTY_LOG_LAYOUT_H_
