// Dirty pages from the kernel's own page tables: PAGEMAP_SCAN.
#ifndef DIRTYTRACK_PAGEMAP_SCAN_SOURCE_H_
#define DIRTYTRACK_PAGEMAP_SCAN_SOURCE_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/pagemap_scan_abi.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Reports which pages a VMM has written through its own mapping of guest RAM,
// which its WriteTracking has registered. Others' mappings of the same memory,
// DMA, and pages punched out of a shared file are not seen
// (docs/userfaultfd.md). Nobody has to mark anything and nobody can lie: the
// VMM's author registers memory once, and the daemon asks the kernel.
//
// A kernel page that was written reports all of its pages: 512 for 2 MiB.
// Needs no permission beyond the descriptor. One thread, as DirtySource.
class PagemapScanSource final : public DirtySource {
 public:
  enum class Mode {
    // Collect takes: a page is reported once, and protected again at once.
    kTakeAtOnce,
    // Collect looks; Clear protects, just before the page is read. A page
    // written several times before its turn comes is read once, and the
    // guest's write faults are spread over the round.
    kClearBeforeRead,
  };

  // Where the VMM has mapped a region, and the size of the pages that it is
  // mapped with: kPageSize or kHugePageSize (hugetlbfs; transparent huge pages
  // count as small ones).
  struct HostRegion {
    HostAddress address;
    ByteCount kernel_page_size{kPageSize};
  };
  static constexpr ByteCount kHugePageSize{uint64_t{2} << 20};

  // How much one system call scans at most. It holds the lock of the VMM's
  // address space, and what it took is reported again if it fails.
  static constexpr PageCount kPagesPerScan{(uint64_t{256} << 20) / kPageSize};
  // How many runs of pages it reports at most.
  static constexpr size_t kRunsPerScan = 4096;

  // As ioctl(pagemap, PAGEMAP_SCAN, arg): -1 and errno, or regions filled.
  using ScanCall = std::function<int(PagemapScanArg* arg)>;

  // `regions` are those of `layout`, in its order. `pagemap` is the VMM's
  // /proc/PID/pagemap: received from it, or opened here. INVALID_ARGUMENT,
  // naming the region and what to change, unless: there are as many regions as
  // in `layout`; kernel pages have one of the two sizes; addresses and lengths
  // are multiples of it; no two overlap and none wraps; and `pagemap` is a
  // file of /proc. RESOURCE_EXHAUSTED without memory for a bitmap.
  static absl::StatusOr<std::unique_ptr<PagemapScanSource>> Create(
      const RamLayout& layout, std::vector<HostRegion> regions,
      UniqueFd pagemap, Mode mode);

  // For tests: `scan` stands for the kernel, which `pagemap` is only asked
  // about whether the VMM lives.
  static absl::StatusOr<std::unique_ptr<PagemapScanSource>> CreateWithScan(
      const RamLayout& layout, std::vector<HostRegion> regions,
      UniqueFd pagemap, Mode mode, ScanCall scan);

  // Protects all RAM: what was written before is not reported. Errors of this
  // and all other methods that scan:
  //   FAILED_PRECONDITION  memory is not mapped, or not registered (any more),
  //                        or mapped with larger pages than Create was told
  //   INVALID_ARGUMENT     no address of a process; `pagemap` is no pagemap
  //   UNIMPLEMENTED        the kernel is older than 6.7, or `pagemap` is
  //                        another file of /proc
  //   ABORTED              the VMM has ended, or has become another program
  //   RESOURCE_EXHAUSTED   the kernel lacks memory for page tables
  //   INTERNAL             anything else, nonsense from the kernel included
  absl::Status Start() override;

  // After a failure pages may be reported that were not written.
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;

  // In kClearBeforeRead, protects from the first to the last page of `run` that
  // is set in `pages`, widened to whole kernel pages. What is protected thereby
  // and was not named is reported by the next Collect.
  absl::Status Clear(PageBitmapView pages, PageRun run) override;

  absl::Status Restore(PageBitmapView unsent) override;

  // Pages that are protected stay so until they are written once; the rest of
  // the cost ends with the VMM's WriteTracking.
  absl::Status Stop() override;

 private:
  // A region as RAM pages and as the VMM's memory.
  struct Tracked {
    std::string name;
    PageRun pages;
    HostAddress address;
    PageCount kernel_page;

    HostAddress AddressOf(PageIndex page) const;
    PageIndex PageAt(HostAddress at) const;
    // `run` widened to whole kernel pages.
    PageRun Widen(PageRun run) const;
  };
  struct Scan {
    uint64_t flags;
    uint64_t category;
    size_t max_runs;
  };
  using Visit = absl::FunctionRef<void(PageRun)>;

  PagemapScanSource(PageCount pages, std::vector<Tracked> regions,
                    UniqueFd pagemap, Mode mode, PageBitmap pending,
                    ScanCall scan);

  absl::Status CheckUse(PageBitmapView bitmap) const;
  // FAILED_PRECONDITION unless all of `region` is mapped and registered.
  absl::Status CheckRegistered(const Tracked& region);
  // FAILED_PRECONDITION if `region`, told to be in pages of 4 KiB, has a huge
  // one. When a part of it is protected a file's huge page is unmapped, and a
  // hole of that size does not count as written.
  absl::Status CheckNoHugePage(const Tracked& region);
  // ABORTED if the process that `pagemap_` shows is gone.
  absl::Status CheckAlive() const;
  // Visits the pages of `run` that match. If that fails, and it protects, what
  // may have been taken is pending.
  absl::Status ScanRun(const Tracked& region, PageRun run, const Scan& scan,
                       Visit visit);
  // One system call; returns how far it came, which is past run.first.
  absl::StatusOr<PageIndex> ScanOnce(const Tracked& region, PageRun run,
                                     const Scan& scan, Visit visit);
  absl::Status ScanError(const Tracked& region, int error) const;
  absl::Status ClearIn(const Tracked& region, PageBitmapView pages,
                       PageRun run);

  const PageCount pages_;
  const std::vector<Tracked> regions_;
  const UniqueFd pagemap_;
  const Mode mode_;
  const ScanCall scan_;
  std::vector<PagemapRegion> found_;  // where the kernel writes
  // What the next Collect reports besides what the kernel says: put back, or
  // protected without having been reported.
  PageBitmap pending_;
  bool started_ = false;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_PAGEMAP_SCAN_SOURCE_H_
