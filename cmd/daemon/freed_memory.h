// What a daemon does with memory that it has no use for at the moment.
#ifndef CMD_DAEMON_FREED_MEMORY_H_
#define CMD_DAEMON_FREED_MEMORY_H_

#include <cstddef>

namespace postcopy {

// Freed memory of each heap of the allocator that is kept for the next message,
// in bytes: a few of the largest there are.
inline constexpr size_t kFreedBytesKept = size_t{16} << 20;

// Blocks up to this come from a heap, in bytes: all of a message's do.
inline constexpr size_t kHeapBlockBytesMax = size_t{4} << 20;

// Has the allocator keep what is freed, up to kFreedBytesKept, instead of
// giving it back to the kernel: message after message of bulk pages would be
// written into memory that the kernel has to find and to clear first. To be
// called by main before there is another thread. mallopt(3), M_TRIM_THRESHOLD
// and M_MMAP_THRESHOLD; an allocator that knows neither is left as it is.
void KeepFreedMemory();

}  // namespace postcopy

#endif  // CMD_DAEMON_FREED_MEMORY_H_
