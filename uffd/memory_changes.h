// What the VMM does to its memory meanwhile: gives it up, unmaps it, moves it.
#ifndef UFFD_MEMORY_CHANGES_H_
#define UFFD_MEMORY_CHANGES_H_

#include <linux/userfaultfd.h>

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "dirtytrack/types.h"
#include "uffd/destination_ram.h"
#include "uffd/install_strategy.h"
#include "uffd/page_state.h"

namespace postcopy {

// Counts of messages, and of pages that were missing and will not be fetched.
struct MemoryChangeCounters {
  std::atomic<uint64_t> removals{0};
  std::atomic<uint64_t> unmaps{0};
  std::atomic<uint64_t> remaps{0};
  std::atomic<uint64_t> removed_pages{0};
};

// Writes down what the events of a userfaultfd say:
//
//   REMOVE  madvise(2) with MADV_DONTNEED, MADV_FREE or MADV_REMOVE, as balloon
//           drivers do: the pages are zeros from now on, and never fetched
//   UNMAP   munmap(2): nobody can miss the pages any more
//   REMAP   mremap(2): the pages are at other addresses
//
// Shared memory is taken as given up too, though MADV_DONTNEED would leave it
// in its file: the kernel does not say which call it was, and a balloon means
// the other. What the file has already stays what the guest sees, but for stale
// bytes of missing pages. What waits to be installed is given up as well. Huge
// pages are given up whole or not at all, as the kernel does it.
//
// For the thread that reads messages.
class MemoryChanges {
 public:
  // All outlive the object.
  MemoryChanges(DestinationRam* ram, PageState* state,
                const InstallStrategies* strategies)
      : ram_(*ram), state_(*state), strategies_(*strategies) {}

  // True for the three events above.
  static bool Is(const uffd_msg& message);

  // Takes note of `message`. Who waits in the addresses WakeAfter has to be
  // woken afterwards. RESOURCE_EXHAUSTED: of DestinationRam::Remap. INTERNAL:
  // the file system does not give up stale bytes, or such that wait.
  // REQUIRES: Is(message); the InstallGate is closed.
  absl::Status Apply(const uffd_msg& message);

  struct Range {
    HostAddress address;
    ByteCount length;
  };
  // Where threads may wait for pages that will not come there.
  // REQUIRES: Is(message).
  static Range WakeAfter(const uffd_msg& message);

  const MemoryChangeCounters& counters() const { return counters_; }

 private:
  // Its pages are zeros, and here.
  void GiveUp(Range range);
  // Takes what is stale out of the file. Of what has been unmapped nothing: the
  // VMM runs on when its message has been read, and may have put it to another
  // use.
  absl::Status Empty(Range range);
  absl::Status Empty(PageRun run);
  // Takes what waits for the VMM out of its file: it will not be needed.
  absl::Status Unstage(Range range);
  static absl::Status Punch(const DestinationRam::Piece& piece);

  DestinationRam& ram_;
  PageState& state_;
  const InstallStrategies& strategies_;
  MemoryChangeCounters counters_;
};

}  // namespace postcopy

#endif  // UFFD_MEMORY_CHANGES_H_
