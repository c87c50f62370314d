// The seam behind which the userfaultfd of one VM lies.
#ifndef UFFD_UFFD_OPS_H_
#define UFFD_UFFD_OPS_H_

#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "dirtytrack/types.h"

namespace postcopy {

// What an ioctl did. A value without allocation, for the fault path.
struct UffdResult {
  // 0, or the errno.
  int error = 0;
  // Bytes done from the range's start, in whole pages. After an error too:
  // UFFDIO_COPY that stops halfway says EAGAIN and how far it came.
  ByteCount done;

  bool ok() const { return error == 0; }
};

// What registering a range gave.
struct UffdRegistration {
  // 0, or the errno.
  int error = 0;
  // Bit _UFFDIO_X is set if UFFDIO_X can be used there.
  uint64_t ioctls = 0;

  bool ok() const { return error == 0; }
  bool Can(unsigned ioctl_number) const {
    return (ioctls >> ioctl_number & 1) != 0;
  }
};

// What a read() of messages gave.
struct UffdReadResult {
  // 0, or the errno. EAGAIN: no message was waiting.
  int error = 0;
  size_t messages = 0;
};

// The ioctls of one userfaultfd, as
// Documentation/admin-guide/mm/userfaultfd.rst and ioctl_userfaultfd(2)
// describe them. Addresses are of the process that created the userfaultfd and,
// with lengths, multiples of kPageSize; a range is [address, address + length)
// and not empty. Thread-safe, like the kernel.
class UffdOps {
 public:
  virtual ~UffdOps() = default;

  // UFFD_FEATURE_... that the userfaultfd was set up with.
  virtual uint64_t features() const = 0;
  // True if memory that the VMM gives up or moves is told of. Such messages are
  // read behind all faults that wait, and who caused one sleeps until it is
  // read; meanwhile Copy and ZeroPage say EAGAIN.
  bool tells_of_removals() const {
    return (features() & (UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
                          UFFD_FEATURE_EVENT_REMAP)) != 0;
  }

  // Reports faults in the range, of the kinds in `modes`
  // (UFFDIO_REGISTER_MODE_...):
  //
  //   MISSING  of pages that are not there
  //   MINOR    of pages that are in their file, but not in the page table
  //   WP       of writes to pages that are write-protected
  //
  // Not an error where that is done already; kinds that are not in `modes` may
  // end. EINVAL: not mapped, not aligned to
  // its huge pages, not anonymous, shmem or hugetlbfs memory, or of no memory
  // that can have these modes. EBUSY: registered with another userfaultfd.
  // ENOMEM: the process is gone.
  virtual UffdRegistration Register(HostAddress address, ByteCount length,
                                    uint64_t modes) = 0;

  // Ends that; every thread that waits there goes on and finds missing pages
  // to be zeros, also one whose fault began meanwhile. ENOMEM: the process is
  // gone.
  virtual UffdResult Unregister(HostAddress address, ByteCount length) = 0;

  // Inserts copies of the pages at `source` (any alignment) where no page is
  // yet, up to the first that is there (EEXIST); wakes who waits in the part
  // done if `wake`. EAGAIN: stopped halfway or the address space is changing.
  // ENOENT: the range is not inside one registered mapping. ESRCH: the process
  // is gone.
  virtual UffdResult Copy(HostAddress address, const uint8_t* source,
                          ByteCount length, bool wake) = 0;

  // The same with pages of zeros.
  virtual UffdResult ZeroPage(HostAddress address, ByteCount length,
                              bool wake) = 0;

  // Puts pages that are in their file into the page table, up to the first that
  // is there already (EEXIST) or is not in the file (EFAULT). Else as Copy.
  // REQUIRES: registered for MINOR.
  virtual UffdResult Continue(HostAddress address, ByteCount length,
                              bool wake) = 0;

  // Lets the range be written again, and wakes who waits to write there.
  // EAGAIN: the address space is changing. ENOENT: nothing is registered there
  // for WP. ESRCH: the process is gone.
  virtual UffdResult Unprotect(HostAddress address, ByteCount length) = 0;

  // Every thread that waits in the range goes on: it finds its page or faults
  // again, with a new message.
  virtual UffdResult Wake(HostAddress address, ByteCount length) = 0;

  // From now on who touches the range gets SIGBUS (a system call, EFAULT).
  // EEXIST if a page is there. EINVAL: the kernel is older than 6.6.
  virtual UffdResult Poison(HostAddress address, ByteCount length) = 0;

  // Reads waiting messages, at most messages.size(), without blocking. What
  // was read is consumed: the kernel does not say it again before a Wake.
  virtual UffdReadResult Read(absl::Span<uffd_msg> messages) = 0;

  // A descriptor that poll() reports as readable while messages wait. Owned
  // by this object.
  virtual int poll_fd() const = 0;
};

}  // namespace postcopy

#endif  // UFFD_UFFD_OPS_H_
