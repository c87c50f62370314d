// The VMM's half of write tracking: its memory, open to PAGEMAP_SCAN.
#ifndef DIRTYTRACK_WRITE_TRACKING_H_
#define DIRTYTRACK_WRITE_TRACKING_H_

#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Memory of this process.
struct HostRange {
  HostAddress address;
  ByteCount length;
};

// Keeps memory of this process registered, so that whoever holds its pagemap
// can ask which pages this process has written (PagemapScanSource does). Only
// writes through the registered mappings count: by this process's threads and
// vCPUs, and by system calls on their behalf.
//
// Nothing faults to anybody: a first write costs the writer a microsecond in
// the kernel, and nobody has to serve the userfaultfd. Destruction ends
// tracking, and every scan from then on fails, so it has to live as long as
// anybody tracks; a child of fork() is not tracked. Move-only, as thread-safe
// as a descriptor.
class WriteTracking {
 public:
  // Registers `ranges`: mapped memory (anonymous, memfd, tmpfs, hugetlbfs), in
  // whole pages of those that it is mapped with. Nothing is protected yet, so
  // nothing costs yet. Errors: PERMISSION_DENIED with what to grant,
  // UNIMPLEMENTED before Linux 6.7, INVALID_ARGUMENT for a range that is not
  // mapped or not whole pages, FAILED_PRECONDITION if another userfaultfd has
  // it, RESOURCE_EXHAUSTED.
  static absl::StatusOr<WriteTracking> Create(
      absl::Span<const HostRange> ranges);

  // This process's pagemap, to be sent to who tracks (SCM_RIGHTS). Who has it
  // needs no further permission to scan. The first call gives it away; later
  // ones return nothing (UniqueFd::valid() is false).
  UniqueFd TakePagemap() { return std::move(pagemap_); }

 private:
  WriteTracking(UniqueFd uffd, UniqueFd pagemap)
      : uffd_(std::move(uffd)), pagemap_(std::move(pagemap)) {}

  UniqueFd uffd_;  // closing it unregisters
  UniqueFd pagemap_;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_WRITE_TRACKING_H_
