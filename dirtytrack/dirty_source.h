// The seam behind which a VM's dirty pages come from: the KVM log, the KVM
// ring, PAGEMAP_SCAN, the shared log.
#ifndef DIRTYTRACK_DIRTY_SOURCE_H_
#define DIRTYTRACK_DIRTY_SOURCE_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Which pages of one VM were written, told at intervals. The promise: every
// write after Start is reported by a Collect that begins after the write. A
// page may be reported more often than it was written, never less.
//
// Calls come from one thread at a time; the guest and whoever marks pages run
// concurrently. Bitmaps handed in cover the VM's whole RAM, indexed by RAM
// page, and no source keeps a view after the call returns.
class DirtySource {
 public:
  virtual ~DirtySource() = default;

  // Begins to track. Pages written from here on are reported; pages written
  // before may be. FAILED_PRECONDITION if already started. After any other
  // error nothing is tracked and Start may be tried again.
  virtual absl::Status Start() = 0;

  // ORs into `into` the pages written since the last Collect and returns how
  // many of them were clear there. Nothing is lost on failure: bits that have
  // already been moved into `into` stay there, the rest stays in the source.
  // UNAVAILABLE is worth a retry. FAILED_PRECONDITION if not started.
  virtual absl::StatusOr<PageCount> Collect(PageBitmapView into) = 0;

  // Puts back what was collected and not sent: the next Collect reports every
  // set bit of `unsent`, which is unchanged. On failure some may have been put
  // back; it is safe to call again. FAILED_PRECONDITION if not started.
  virtual absl::Status Restore(PageBitmapView unsent) = 0;

  // Ends tracking and its cost to the guest. Dirtiness not yet collected may
  // be forgotten. OK if not started.
  virtual absl::Status Stop() = 0;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_DIRTY_SOURCE_H_
