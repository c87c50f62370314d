// How a process makes a userfaultfd for its own memory.
#ifndef DIRTYTRACK_USERFAULTFD_H_
#define DIRTYTRACK_USERFAULTFD_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// A userfaultfd of this process.
struct NewUserfaultfd {
  UniqueFd fd;
  // Where it came from: "/dev/userfaultfd" or "userfaultfd(2)".
  absl::string_view origin;
};

// Creates a userfaultfd for this process's memory: non-blocking, close-on-exec,
// reporting faults in kernel mode too (KVM's are), UFFDIO_API done with
// `features` (0: none). Tries the device first, since in a user namespace the
// system call is refused. Errors: PERMISSION_DENIED with what to grant,
// UNIMPLEMENTED if the kernel lacks a feature, else INTERNAL.
absl::StatusOr<NewUserfaultfd> CreateUserfaultfd(uint64_t features = 0);

}  // namespace postcopy

#endif  // DIRTYTRACK_USERFAULTFD_H_
