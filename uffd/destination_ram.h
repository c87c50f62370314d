// Where a VM's RAM pages lie at the destination: in the VMM's address space and
// in the files behind it.
#ifndef UFFD_DESTINATION_RAM_H_
#define UFFD_DESTINATION_RAM_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// The memory of one region of the layout, as the VMM described it.
struct DestinationRegion {
  // Where the VMM has mapped it, MAP_SHARED.
  HostAddress host_address;
  // The memfd or tmpfs file behind that mapping, open for reading and writing.
  // Borrowed: duplicated where it is kept.
  int memory_fd = -1;
  // Byte of the file that is the region's first.
  uint64_t fd_offset = 0;
};

// The regions of one VM, validated. Immutable and thread-safe. The files are
// reached by system calls only: a mapping would allocate the holes that are
// read, and end this process when the VMM shortens the file.
class DestinationRam {
 public:
  // Consecutive pages of one region.
  struct Piece {
    PageRun pages;
    HostAddress address;
    int fd;
    off_t file_offset;

    ByteCount bytes() const { return BytesIn(pages.count); }
  };

  // `regions` are those of `layout`, in its order. INVALID_ARGUMENT, naming the
  // region and what to change: another number of regions, an address or offset
  // that is not page-aligned or overflows, regions whose addresses or file
  // ranges overlap, a descriptor that is not open for reading and writing, a
  // file that is not shmem or ends before the region does. RESOURCE_EXHAUSTED
  // if it cannot be duplicated.
  static absl::StatusOr<DestinationRam> Create(
      RamLayout layout, const std::vector<DestinationRegion>& regions);

  const RamLayout& layout() const { return layout_; }
  size_t region_count() const { return regions_.size(); }

  // All of region `index`. REQUIRES: index < region_count().
  Piece region(size_t index) const;

  // The longest beginning of `run` that lies in one region.
  // REQUIRES: run is not empty and lies in the layout.
  Piece FirstPiece(PageRun run) const;

  // The RAM page that holds `address`; nullopt if it is in no region.
  std::optional<PageIndex> PageAt(HostAddress address) const;

  // False if `page` is a hole of its file, true if it holds data or the file
  // cannot tell. Moves the file offset of the open file description, which the
  // VMM shares. REQUIRES: page lies in the layout.
  bool HasData(PageIndex page) const;

 private:
  struct Mapped {
    PageRun pages;
    HostAddress address;
    UniqueFd fd;
    uint64_t fd_offset;
  };

  DestinationRam(RamLayout layout, std::vector<Mapped> regions);

  RamLayout layout_;
  std::vector<Mapped> regions_;     // in the layout's order
  std::vector<size_t> by_address_;  // indices into regions_
};

}  // namespace postcopy

#endif  // UFFD_DESTINATION_RAM_H_
