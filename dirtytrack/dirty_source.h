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
// write after Start is reported by a Collect that begins after the write,
// unless the page had been reported already and no Clear has named it since. A
// page may be reported more often than it was written, never less.
//
// So whoever reads pages goes Collect, then for each part of RAM Clear, read.
// The other way round, a write between reading and clearing is lost.
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

  // Makes sure that writes from here on to the pages of `run` that are set in
  // `pages` are reported, and forgets, if it can, that these pages are dirty:
  // the caller is about to read them. Pages of `run` that are not set stay as
  // dirty as they are. The pages need not be ones that this source reported:
  // who learnt of a page elsewhere (vhost, device DMA) saves itself a second
  // report. A call for few pages at a time keeps the guest's stalls short.
  //
  // Sources that Collect one report for each write (no two steps: KVM's log
  // without manual protection, the shared log) have nothing to do here.
  //
  // On failure some pages may be cleared, which is safe as long as the caller
  // still counts them as unsent. FAILED_PRECONDITION if not started.
  // REQUIRES: run lies in `pages` and in the VM's RAM.
  virtual absl::Status Clear(PageBitmapView pages, PageRun run) = 0;

  // Puts back what was collected and not sent: the next Collect reports every
  // set bit of `unsent`, which is unchanged. On failure some may have been put
  // back; it is safe to call again. FAILED_PRECONDITION if not started.
  virtual absl::Status Restore(PageBitmapView unsent) = 0;

  // Ends tracking and its cost to the guest. Dirtiness not yet collected may
  // be forgotten. OK if not started.
  virtual absl::Status Stop() = 0;
};

// What Collect, Clear and Restore check first: FAILED_PRECONDITION unless
// `started`, INVALID_ARGUMENT if `bitmap` is smaller than a VM of `ram` pages.
absl::Status CheckDirtySourceUse(bool started, PageCount ram,
                                 PageBitmapView bitmap);

}  // namespace postcopy

#endif  // DIRTYTRACK_DIRTY_SOURCE_H_
