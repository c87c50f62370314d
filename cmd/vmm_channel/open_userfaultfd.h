// How a VMM gets the userfaultfd that it hands to faultd.
#ifndef CMD_VMM_CHANNEL_OPEN_USERFAULTFD_H_
#define CMD_VMM_CHANNEL_OPEN_USERFAULTFD_H_

#include <string>

#include "absl/status/statusor.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

struct UserfaultFd {
  UniqueFd fd;
  // "/dev/userfaultfd" or "the userfaultfd system call".
  std::string how;
};

// A userfaultfd of this process's memory, as faultd wants it: for faults of
// the kernel too (KVM's are), non-blocking, close-on-exec, UFFDIO_API done
// without events. Tries the device first, since it can be permitted to a group,
// and needs no capability; then the system call. PERMISSION_DENIED says what an
// operator can permit; UNIMPLEMENTED if the kernel lacks what is needed.
absl::StatusOr<UserfaultFd> OpenUserfaultfd();

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_OPEN_USERFAULTFD_H_
