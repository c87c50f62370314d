// Where a VM's RAM pages lie at the destination: in the VMM's address space and
// in the files behind it, where there are any that this process can reach.
#ifndef UFFD_DESTINATION_RAM_H_
#define UFFD_DESTINATION_RAM_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// The memory of one region of the layout, as the VMM described it.
struct DestinationRegion {
  // Where the VMM has mapped it.
  HostAddress host_address;
  // The file behind that mapping, which then is MAP_SHARED: a memfd or a file
  // on tmpfs, or of hugetlbfs where the region has huge pages; open for reading
  // and writing. Borrowed: opened anew where it is kept. -1: no file that could
  // be reached; the memory is the VMM's alone.
  int memory_fd = -1;
  // Byte of the file that is the region's first.
  uint64_t fd_offset = 0;
  // Without a file: precopied pages are to wait in one of this process until
  // they can be installed. Else such a region takes none.
  bool staged = false;
};

// Parts that the VMM may break its mappings into by mremap(2): beyond them
// serving ends, since nobody needs that many and the daemon must not grow.
inline constexpr size_t kMaxMappedParts = 4096;

// The regions of one VM, validated. The files are reached by system calls only:
// a mapping would allocate the holes that are read, and end this process when
// the VMM shortens the file. Those of hugetlbfs, which has no write(2), are
// mapped, and written there by the kernel, which fails where this process would
// die; nobody else touches that mapping.
//
// Thread-safe but for Remap and Unmap, during which nobody else may ask for
// addresses (InstallGate); without them it never changes.
class DestinationRam {
 public:
  // Consecutive pages of one region, at consecutive addresses.
  struct Piece {
    PageRun pages;
    HostAddress address;  // 0: the VMM has unmapped them
    int fd;               // -1: no file
    off_t file_offset;
    // Pages of kPageSize in one page of the region: 1 or 512.
    PageCount unit;
    // The file is not what the VMM has mapped, but where its pages wait.
    bool staged = false;
    // Where a file of hugetlbfs is mapped here. Not to be touched.
    uint8_t* alias = nullptr;

    ByteCount bytes() const { return BytesIn(pages.count); }
    bool has_file() const { return fd >= 0; }
    bool mapped() const { return address != HostAddress(0); }
    // The VMM has mapped the file, which is of small pages.
    bool has_small_file() const {
      return has_file() && !staged && unit == PageCount(1);
    }
    // The file can tell which pages it has; hugetlbfs cannot.
    bool tells_holes() const { return has_file() && alias == nullptr; }

    // REQUIRES for all: has_file().
    // Puts bytes() bytes into the file. 0, or the errno, ENOMEM where no huge
    // page is left; `done` is how many were written, also on failure.
    int Write(const uint8_t* bytes, ByteCount* done) const;
    // Makes the pages zeros: holes, if that is possible without making others
    // of their unit holes too. 0, or the errno.
    int Clear() const;
    // Makes the pages holes of the file, in every mapping of it; huge ones are
    // reserved anew, so that they can be had again. 0, or the errno, ENOMEM if
    // somebody else was quicker. REQUIRES: whole units, unless staged.
    int PunchHole() const;
  };

  // `regions` are those of `layout`, in its order. INVALID_ARGUMENT, naming the
  // region and what to change: another number of regions, an address or offset
  // that is not page-aligned, is 0 or overflows, regions whose addresses or
  // file ranges overlap, a descriptor that is not open for reading and writing,
  // a file that is not shmem, or not hugetlbfs with the region's pages, or ends
  // before the region does. RESOURCE_EXHAUSTED if it cannot be duplicated, or
  // the host has too few huge pages.
  static absl::StatusOr<DestinationRam> Create(
      RamLayout layout, const std::vector<DestinationRegion>& regions);

  const RamLayout& layout() const { return layout_; }
  size_t region_count() const { return regions_.size(); }

  // All of region `index`, as the VMM first mapped it.
  // REQUIRES: index < region_count().
  Piece region(size_t index) const;

  // The longest beginning of `run` that lies in one region and at consecutive
  // addresses. REQUIRES: run is not empty and lies in the layout.
  Piece FirstPiece(PageRun run) const;

  // The page of its region that `page` is of: one page of kPageSize, or the 512
  // of a huge page. REQUIRES: page lies in the layout.
  PageRun UnitOf(PageIndex page) const;
  // The largest unit of any region.
  PageCount largest_unit() const { return largest_unit_; }
  // `run` without the units that it has only parts of; perhaps empty.
  // REQUIRES: run lies in one region.
  PageRun WholeUnits(PageRun run) const;
  // What to ask a source for in place of `run`: the whole unit of its first
  // page where that is a huge one, else the part of `run` in one region.
  PageRun RequestFor(PageRun run) const;
  // True if every region has a file, or one where its pages wait.
  bool has_files() const;
  // True if there are regions whose pages wait in a file; true if pages still
  // do.
  bool has_staging() const;
  bool AnyStaged() const;

  // The RAM page that holds `address`; nullopt if it is in no region.
  std::optional<PageIndex> PageAt(HostAddress address) const;

  // The RAM pages whose addresses lie in [address, address + length), in no
  // order. Not for the path of a fault: allocates.
  std::vector<PageRun> PagesAt(HostAddress address, ByteCount length) const;

  // The VMM has moved [from, from + length) to `to`, as UFFD_EVENT_REMAP says.
  // What is no RAM is left alone, what was at `to` is unmapped.
  // RESOURCE_EXHAUSTED beyond kMaxMappedParts; the VM cannot be served then.
  absl::Status Remap(HostAddress from, HostAddress to, ByteCount length);

  // The VMM has unmapped it. Errors as Remap.
  absl::Status Unmap(HostAddress address, ByteCount length);

  // False if the unit of `page` is a hole of its file, true if it holds data or
  // the file cannot tell. REQUIRES: page lies in a region that has a file.
  bool HasData(PageIndex page) const;

 private:
  struct Memory {
    PageRun pages;
    HostAddress address;
    UniqueFd fd;
    uint64_t fd_offset;
    PageCount unit;
    bool staged;
    SharedMapping alias;  // of a file of hugetlbfs, from fd_offset on
  };
  // Consecutive pages of one region at consecutive addresses.
  struct Part {
    PageRun pages;
    HostAddress address;  // 0: unmapped
    size_t region;

    ByteCount bytes() const { return BytesIn(pages.count); }
  };

  DestinationRam(RamLayout layout, std::vector<Memory> regions);

  Piece PieceOf(const Part& part, PageRun run) const;
  // `parts_` with cuts at both ends of the range, so that each part is inside
  // or outside.
  absl::StatusOr<std::vector<Part>> CutAt(HostAddress address,
                                          ByteCount length) const;
  void Replace(std::vector<Part> parts);

  RamLayout layout_;
  std::vector<Memory> regions_;  // in the layout's order
  PageCount largest_unit_{1};
  std::vector<Part> parts_;         // ascending pages, all of the layout
  std::vector<size_t> by_address_;  // indices into parts_, of the mapped ones
};

}  // namespace postcopy

#endif  // UFFD_DESTINATION_RAM_H_
