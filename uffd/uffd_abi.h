// What <linux/userfaultfd.h> of Linux 6.1 does not have yet.
//
// Values from include/uapi/linux/userfaultfd.h of Linux 6.8. They are of the
// kernel's ABI, so they never change; an older kernel answers EINVAL.
#ifndef UFFD_UFFD_ABI_H_
#define UFFD_UFFD_ABI_H_

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstdint>

namespace postcopy {

// Feature bits of UFFDIO_API; those of write tracking are in
// dirtytrack/pagemap_scan_abi.h.
inline constexpr uint64_t kUffdFeaturePoison = uint64_t{1} << 14;
inline constexpr uint64_t kUffdFeatureMove = uint64_t{1} << 16;

// Set by the kernel once UFFDIO_API was done; shows in /proc/PID/fdinfo
// (UFFD_FEATURE_INITIALIZED in fs/userfaultfd.c).
inline constexpr uint64_t kUffdFeatureInitialized = uint64_t{1} << 31;

// UFFDIO_MOVE (Linux 6.8).
struct UffdioMove {
  uint64_t dst;
  uint64_t src;
  uint64_t len;
  uint64_t mode;
  int64_t move;  // bytes moved or -errno, written by the kernel
};
inline constexpr unsigned kUffdioMoveNumber = 0x05;
inline constexpr unsigned long kUffdioMove =
    _IOWR(UFFDIO, kUffdioMoveNumber, UffdioMove);

// UFFDIO_POISON (Linux 6.6).
struct UffdioPoison {
  uffdio_range range;
  uint64_t mode;
  int64_t updated;  // bytes poisoned or -errno, written by the kernel
};
inline constexpr unsigned kUffdioPoisonNumber = 0x08;
inline constexpr unsigned long kUffdioPoison =
    _IOWR(UFFDIO, kUffdioPoisonNumber, UffdioPoison);

static_assert(sizeof(UffdioMove) == 40);
static_assert(sizeof(UffdioPoison) == 32);
static_assert(kUffdioMove == 0xc028aa05);
static_assert(kUffdioPoison == 0xc020aa08);
static_assert(sizeof(uffd_msg) == 32);
static_assert(sizeof(uffdio_copy) == 40);
static_assert(sizeof(uffdio_zeropage) == 32);
static_assert(sizeof(uffdio_continue) == 32);
static_assert(sizeof(uffdio_writeprotect) == 24);

}  // namespace postcopy

#endif  // UFFD_UFFD_ABI_H_
