// The source's view of guest RAM: read it, and know where there is nothing to
// read.
#ifndef PAGESERVER_GUEST_MEMORY_H_
#define PAGESERVER_GUEST_MEMORY_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Where a region's bytes are: in the file behind `fd`, from `offset` on. That
// may be the memory of the VMM's process (/proc/PID/mem), where they are at
// their address.
struct RegionFile {
  int fd = -1;
  uint64_t offset = 0;
};

// Reads the RAM of one VM from the files that back it (memfd, tmpfs, hugetlbfs)
// or from the VMM's process, by pread: a mapping would allocate the holes it
// reads, and a VMM that truncates its file would end the daemon with SIGBUS.
// Thread-safe; reads run in parallel and see the guest's writes as any other
// process would.
class GuestMemory {
 public:
  // One file for each region of `layout`, in order; the descriptors are
  // duplicated, so memory outlives the VMM that attached it, but for what is
  // its process's. INTERNAL if that fails.
  static absl::StatusOr<std::unique_ptr<GuestMemory>> Create(
      RamLayout layout, absl::Span<const RegionFile> files);

  const RamLayout& layout() const { return layout_; }

  // Keeps `held` as long as anything of the memory is held; lets it go last.
  // Before there is another thread.
  void Keep(std::shared_ptr<const void> held) { held_ = std::move(held); }

  // Reads all of `run`, across regions if it must. `bytes` is as long as the
  // run. OUT_OF_RANGE outside the layout; DATA_LOSS if a file has become
  // shorter than its region, or the process has ended; INTERNAL for an I/O
  // error. On failure `bytes` is unspecified.
  absl::Status Read(PageRun run, absl::Span<uint8_t> bytes) const;

  // True if some page of `run` is not in memory, so that Read may wait for a
  // disk: swapped out, or of a file that has not been read. A guess, by
  // cachestat(2): it may come or go meanwhile. Holes of memfds and tmpfs are
  // no such pages, those of files on a disk are. False where the kernel does
  // not say (before Linux 6.5, hugetlbfs, memory of a process), and outside the
  // layout. Does not wait.
  bool MayWait(PageRun run) const;

  // The file system of the first file, by which those who may wait for the same
  // disk are told from others.
  uint64_t disk() const { return disk_; }

  // The first page of [from, end) that is not a hole; `end` if all of it is
  // holes, which read as zeros. hugetlbfs and processes tell of no holes.
  // Touches no page. Errors as Read, but for
  // OUT_OF_RANGE.
  // REQUIRES: from <= end <= layout().pages().
  absl::StatusOr<PageIndex> NextData(PageIndex from, PageIndex end) const;

  // Bytes of the files that are no holes, as far as they may be of the VM: at
  // most the layout's. 0 for a file that cannot be asked, all of what is a
  // process's.
  ByteCount Allocated() const;

 private:
  // How a file tells which of its pages are not in memory.
  enum class Absence { kUntold, kSwappedOut, kNotCached };

  struct Backing {
    UniqueFd fd;
    uint64_t offset = 0;
    Absence absence = Absence::kUntold;
    bool of_process = false;
  };

  GuestMemory(RamLayout layout, std::vector<Backing> backings);

  static Absence AbsenceOf(int fd);
  // The part of `run` that lies in the region of its first page.
  PageRun WithinRegion(PageRun run, size_t region) const;
  // Byte offset of `page` in the file of `region`.
  uint64_t FileOffset(PageIndex page, size_t region) const;

  std::shared_ptr<const void> held_;  // first, so that it goes last
  const RamLayout layout_;
  const std::vector<Backing> backings_;
  uint64_t disk_ = 0;  // constant after construction
};

}  // namespace postcopy

#endif  // PAGESERVER_GUEST_MEMORY_H_
