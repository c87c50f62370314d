// Memory of this process that faults to a userfaultfd, and what it should
// contain. Test-only.
#ifndef UFFD_KERNEL_GUEST_H_
#define UFFD_KERNEL_GUEST_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "uffd/destination_ram.h"
#include "uffd/uffd_ops.h"

namespace postcopy {

// The content that tests give to `page`: different in every word and page.
std::vector<uint8_t> PatternOf(PageIndex page);
std::vector<uint8_t> PatternOf(PageRun run);

// True if the kPageSize bytes at `bytes` are PatternOf(page).
bool HasPattern(const uint8_t* bytes, PageIndex page);

// A layout with regions "ram0", "ram1", … of these sizes.
RamLayout LayoutOf(const std::vector<PageCount>& sizes);

// What the memory of a region is.
enum class MemoryKind {
  kMemfd,      // a memfd, mapped MAP_SHARED from its second page on
  kMinor,      // the same, and the userfaultfd has MINOR_SHMEM for all of them
  kAnonymous,  // private
  kHugetlb,    // private, of 2 MiB pages
  // As these two, but precopied pages may wait.
  kStaged,
  kHugetlbStaged,
  kHugetlbFile,  // a memfd of 2 MiB pages, mapped from its second on
};

// For names of tests.
std::string NameOf(MemoryKind kind);
// True if there is a file behind it.
bool HasFile(MemoryKind kind);
bool IsHuge(MemoryKind kind);

struct GuestRegion {
  MemoryKind kind = MemoryKind::kMemfd;
  PageCount pages;
};

RamLayout LayoutOf(const std::vector<GuestRegion>& regions);

// A VM whose VMM is this process.
class KernelGuest {
 public:
  // Regions of memfds. Null, with a sentence in `reason`, where userfaultfd is
  // not permitted.
  static std::unique_ptr<KernelGuest> Create(
      const std::vector<PageCount>& sizes, std::string* reason);
  // Any regions, and a userfaultfd with `features`. Null also where there are
  // not enough huge pages.
  static std::unique_ptr<KernelGuest> Create(
      const std::vector<GuestRegion>& regions, uint64_t features,
      std::string* reason);

  const RamLayout& layout() const { return layout_; }
  std::vector<DestinationRegion> regions() const;

  // Gives up the userfaultfd. Call once.
  std::unique_ptr<UffdOps> TakeOps() { return std::move(ops_); }

  // Where the VMM sees `page`; touching it may wait for a fault.
  uint8_t* at(PageIndex page) const;
  HostAddress address(PageIndex page) const;
  // Writes to the file behind `page`, not through the mapping.
  // REQUIRES for it and the two below: the region is a memfd of small pages.
  void WriteFile(PageIndex page, absl::Span<const uint8_t> bytes) const;
  // Makes `page` a hole of its file, behind the kernel's back.
  void Punch(PageIndex page) const;
  bool HasData(PageIndex page) const;
  // Gives `run` up as a balloon would, by the call of madvise(2) for its kind:
  // if the userfaultfd tells of it, this waits until the message is read.
  // REQUIRES: `run` lies in one region, and is whole pages of it.
  void GiveUp(PageRun run) const;
  // `run`, of one region, has been unmapped or moved away; once per region. Its
  // addresses may be somebody else's by now, and are left alone.
  void Leave(PageRun run);

 private:
  // Where a region begins in its file.
  static uint64_t FdOffset(MemoryKind kind);

  struct Unmapper {
    size_t length = 0;
    // Bytes in the middle that are not this guest's any more.
    size_t hole_begin = 0;
    size_t hole_end = 0;
    void operator()(uint8_t* data) const;
  };
  struct Memory {
    MemoryKind kind;
    UniqueFd fd;
    std::unique_ptr<uint8_t, Unmapper> data;
  };

  explicit KernelGuest(RamLayout layout) : layout_(std::move(layout)) {}
  static absl::StatusOr<Memory> MapMemory(MemoryKind kind,
                                          const Region& region);
  const Memory& memory(PageIndex page) const;
  // Byte of `page` in its region.
  uint64_t OffsetInRegion(PageIndex page) const;

  const RamLayout layout_;
  std::vector<Memory> memory_;
  std::unique_ptr<UffdOps> ops_;
};

// True if the kernel can read the byte at `address`: waits for a fault like any
// access, and is false, without a signal, for a poisoned page.
bool KernelCanRead(const uint8_t* address);

}  // namespace postcopy

#endif  // UFFD_KERNEL_GUEST_H_
