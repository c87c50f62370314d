// What write tracking needs of the kernel's ABI and Debian 12's headers (6.1)
// do not have: PAGEMAP_SCAN and its userfaultfd features.
//
// Values from include/uapi/linux/fs.h and userfaultfd.h of Linux 6.7. They are
// of the kernel's ABI, so they never change; an older kernel answers ENOTTY
// and EINVAL. Names of our own, so that newer headers do not clash.
#ifndef DIRTYTRACK_PAGEMAP_SCAN_ABI_H_
#define DIRTYTRACK_PAGEMAP_SCAN_ABI_H_

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstdint>

namespace postcopy {

// Feature bits of UFFDIO_API.
inline constexpr uint64_t kUffdFeatureWpUnpopulated = uint64_t{1} << 13;
inline constexpr uint64_t kUffdFeatureWpAsync = uint64_t{1} << 15;

// struct page_region: [start, end) are addresses in the scanned process.
struct PagemapRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;  // kPageIs*, those of them that return_mask has
};

// struct pm_scan_arg. A page matches if it has all of category_mask and, unless
// that is 0, any of category_anyof_mask, where category_inverted turns bits
// round.
struct PagemapScanArg {
  uint64_t size;      // of this struct
  uint64_t flags;     // kPmScan*
  uint64_t start;     // multiple of the page size
  uint64_t end;       // exclusive
  uint64_t walk_end;  // written by the kernel: where it stopped
  uint64_t vec;       // address of PagemapRegion[vec_len], or 0
  uint64_t vec_len;
  uint64_t max_pages;  // 0: no limit
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};

// Write-protects the pages that match, atomically with looking at them.
inline constexpr uint64_t kPmScanWpMatching = uint64_t{1} << 0;
// EPERM for memory that is mapped and not registered for WP_ASYNC.
inline constexpr uint64_t kPmScanCheckWpAsync = uint64_t{1} << 1;

// Lies in memory registered for WP_ASYNC.
inline constexpr uint64_t kPageIsWpAllowed = uint64_t{1} << 0;
// Not protected: written since it was, or never protected.
inline constexpr uint64_t kPageIsWritten = uint64_t{1} << 1;

// Mapped by an entry for a huge page.
inline constexpr uint64_t kPageIsHuge = uint64_t{1} << 6;

// On a descriptor of /proc/PID/pagemap. Returns how many regions it filled.
inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScanArg);

static_assert(sizeof(PagemapRegion) == 24);
static_assert(sizeof(PagemapScanArg) == 96);
static_assert(kPagemapScan == 0xc0606610);

}  // namespace postcopy

#endif  // DIRTYTRACK_PAGEMAP_SCAN_ABI_H_
