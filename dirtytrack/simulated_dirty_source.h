// A DirtySource whose guest is the test. Test-only.
#ifndef DIRTYTRACK_SIMULATED_DIRTY_SOURCE_H_
#define DIRTYTRACK_SIMULATED_DIRTY_SOURCE_H_

#include <cstddef>
#include <mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Reports the pages that the test marks. Every method is thread-safe.
class SimulatedDirtySource final : public DirtySource {
 public:
  enum class Tracking {
    kOneStep,  // Collect takes: a page is reported once for each write
    // As KVM with manual protection, initially set: at Start all pages are
    // dirty, Collect looks, only Clear takes.
    kTwoSteps,
  };

  // A VM with `pages` pages.
  explicit SimulatedDirtySource(PageCount pages,
                                Tracking tracking = Tracking::kOneStep);

  // The guest writes. Before Start and after Stop nothing is recorded.
  // REQUIRES: inside the VM's pages.
  void Mark(PageIndex page) { MarkRun({page, PageCount(1)}); }
  void MarkRun(PageRun run);

  // The pages that the next Collect would report.
  PageCount Pending();
  bool IsPending(PageIndex page);

  // The next call of each returns `error` once, and does nothing else.
  void FailNextStart(absl::Status error);
  void FailNextClear(absl::Status error);
  void FailNextRestore(absl::Status error);
  void FailNextStop(absl::Status error);
  // The next Collect moves the first `moved` dirty pages, then fails.
  void FailNextCollect(absl::Status error, PageCount moved = PageCount(0));

  bool started();
  // How often Collect was called, failures included.
  size_t collects();

  absl::Status Start() override;
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;
  absl::Status Clear(PageBitmapView pages, PageRun run) override;
  absl::Status Restore(PageBitmapView unsent) override;
  absl::Status Stop() override;

 private:
  // Reports the first `max` dirty pages, and takes them if a Collect takes.
  PageCount Report(PageBitmapView into, PageCount max);

  const Tracking tracking_;
  std::mutex mutex_;
  PageBitmap dirty_;
  bool started_ = false;
  size_t collects_ = 0;
  PageCount moved_before_failure_;
  absl::Status next_start_;
  absl::Status next_collect_;
  absl::Status next_clear_;
  absl::Status next_restore_;
  absl::Status next_stop_;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_SIMULATED_DIRTY_SOURCE_H_
