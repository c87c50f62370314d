// One dirty source, several consumers: migration, a display, a backup.
//
// After the discussion of KVM_CLEAR_DIRTY_LOG in QEMU (2019). There the kernel
// bitmap could be cleared by each consumer, and two things go wrong: a bit that
// is cleared without anybody having been told of it is a write that is lost;
// and a bit that one consumer clears is lost to another. A cache of what the
// kernel has reported prevents both, but then dirt that comes from elsewhere
// (vhost, device DMA) leaves its bit in the kernel, and the page is sent twice.
//
// Here one bit per page, `uncleared`, answers all three:
//
//   a page is uncleared if every view has it set, and the source has not been
//   told to clear it since
//
// Only uncleared pages are ever cleared in the source. So each clear happens
// while all consumers still have the page before them.
#ifndef DIRTYTRACK_DIRTY_VIEWS_H_
#define DIRTYTRACK_DIRTY_VIEWS_H_

#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Consumers of one VM's dirty pages at the same time.
inline constexpr size_t kMaxDirtyViews = 8;

// Thread-safe; calls of the source are made one at a time, with a lock held. A
// bit per page and one more for each view.
class DirtyViews {
 public:
  class View;

  // `source` is started and stopped by the caller and outlives this.
  // RESOURCE_EXHAUSTED if there is no memory for the bitmaps.
  static absl::StatusOr<std::unique_ptr<DirtyViews>> Create(DirtySource* source,
                                                            PageCount pages);

  // A view in which every page is dirty: its consumer has seen none.
  // RESOURCE_EXHAUSTED if there are kMaxDirtyViews. The view may not outlive
  // this; it ends with the pointer, and hinders no other.
  absl::StatusOr<std::unique_ptr<View>> NewView();

  // Tells every view what the source has to report. Fails as Collect; what was
  // reported before the failure is told.
  absl::Status Sync();

  // Tells every view of pages that something wrote which the source does not
  // see. Before their consumers read them, so that they are read once.
  // REQUIRES: pages.pages() is that of Create.
  void Merge(PageBitmapView pages);

 private:
  DirtyViews(DirtySource* source, PageBitmap uncleared, PageBitmap reported);
  // Ors reported_ into all views, and empties it.
  void TellLocked();

  DirtySource* const source_;
  std::mutex mutex_;
  // Guarded by mutex_:
  PageBitmap uncleared_;
  PageBitmap reported_;  // by the source or Merge, not yet told
  std::vector<View*> views_;
};

// What one consumer has been told is dirty, and has not cleared. For one thread
// at a time; views of one VM are independent. A DirtySource itself, in two
// steps, so that precopy can be one of the consumers.
class DirtyViews::View final : public DirtySource {
 public:
  ~View() override;

  // Nothing to do: the source has been started.
  absl::Status Start() override { return absl::OkStatus(); }

  // Sync, then ORs what is dirty in this view into `into`; takes nothing.
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;

  // To be called before the pages are read: clears, in this view and, as far as
  // no other consumer's view needs it, in the source, those pages of `run` that
  // are set in `pages` and that this view has been told of. A bit that is set
  // in `pages` alone is not cleared anywhere.
  absl::Status Clear(PageBitmapView pages, PageRun run) override;

  // Makes `unsent` dirty again in this view alone.
  absl::Status Restore(PageBitmapView unsent) override;

  // Nothing to do: other consumers may go on.
  absl::Status Stop() override { return absl::OkStatus(); }

  // What is dirty now; changes with every call of DirtyViews and of this.
  PageBitmapView dirty() const { return dirty_.view(); }

 private:
  friend class DirtyViews;
  View(DirtyViews* owner, PageBitmap dirty, PageBitmap clearing);

  DirtyViews* const owner_;
  const PageBitmap dirty_;     // guarded by owner_->mutex_
  const PageBitmap clearing_;  // empty between calls
};

}  // namespace postcopy

#endif  // DIRTYTRACK_DIRTY_VIEWS_H_
