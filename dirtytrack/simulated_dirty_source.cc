#include "dirtytrack/simulated_dirty_source.h"

#include <algorithm>
#include <utility>

#include "dirtytrack/check.h"

namespace postcopy {
namespace {

absl::Status Take(absl::Status* next) {
  return std::exchange(*next, absl::OkStatus());
}

absl::Status NotStarted() {
  return absl::FailedPreconditionError("dirty tracking is not started");
}

PageBitmap MakeBitmap(PageCount pages) {
  absl::StatusOr<PageBitmap> bitmap = PageBitmap::Create(pages);
  POSTCOPY_CHECK(bitmap.ok());
  return *std::move(bitmap);
}

}  // namespace

SimulatedDirtySource::SimulatedDirtySource(PageCount pages, Tracking tracking)
    : tracking_(tracking), dirty_(MakeBitmap(pages)) {}

void SimulatedDirtySource::MarkRun(PageRun run) {
  std::lock_guard lock(mutex_);
  POSTCOPY_CHECK(run.end().value() <= dirty_.pages().value());
  if (started_) dirty_.view().SetRun(run);
}

PageCount SimulatedDirtySource::Pending() {
  std::lock_guard lock(mutex_);
  return dirty_.view().Count();
}

bool SimulatedDirtySource::IsPending(PageIndex page) {
  std::lock_guard lock(mutex_);
  return dirty_.view().Test(page);
}

void SimulatedDirtySource::FailNextStart(absl::Status error) {
  std::lock_guard lock(mutex_);
  next_start_ = std::move(error);
}

void SimulatedDirtySource::FailNextClear(absl::Status error) {
  std::lock_guard lock(mutex_);
  next_clear_ = std::move(error);
}

void SimulatedDirtySource::FailNextRestore(absl::Status error) {
  std::lock_guard lock(mutex_);
  next_restore_ = std::move(error);
}

void SimulatedDirtySource::FailNextStop(absl::Status error) {
  std::lock_guard lock(mutex_);
  next_stop_ = std::move(error);
}

void SimulatedDirtySource::FailNextCollect(absl::Status error,
                                           PageCount moved) {
  std::lock_guard lock(mutex_);
  next_collect_ = std::move(error);
  moved_before_failure_ = moved;
}

bool SimulatedDirtySource::started() {
  std::lock_guard lock(mutex_);
  return started_;
}

size_t SimulatedDirtySource::collects() {
  std::lock_guard lock(mutex_);
  return collects_;
}

absl::Status SimulatedDirtySource::Start() {
  std::lock_guard lock(mutex_);
  if (absl::Status s = Take(&next_start_); !s.ok()) return s;
  if (started_) {
    return absl::FailedPreconditionError("dirty tracking is already started");
  }
  started_ = true;
  if (tracking_ == Tracking::kTwoSteps) {
    dirty_.view().SetRun({PageIndex(0), dirty_.pages()});
  }
  return absl::OkStatus();
}

PageCount SimulatedDirtySource::Report(PageBitmapView into, PageCount max) {
  PageCount set;
  for (PageIndex page; !max.empty();) {
    const auto run = dirty_.view().NextSetRun(page, max);
    if (!run.has_value()) break;
    set += into.SetRun(*run);
    if (tracking_ == Tracking::kOneStep) dirty_.view().ClearRun(*run);
    max -= run->count;
    page = run->end();
  }
  return set;
}

absl::StatusOr<PageCount> SimulatedDirtySource::Collect(PageBitmapView into) {
  std::lock_guard lock(mutex_);
  ++collects_;
  if (!started_) return NotStarted();
  if (absl::Status s = Take(&next_collect_); !s.ok()) {
    Report(into, moved_before_failure_);
    return s;
  }
  return Report(into, dirty_.pages());
}

absl::Status SimulatedDirtySource::Clear(PageBitmapView pages, PageRun run) {
  std::lock_guard lock(mutex_);
  if (!started_) return NotStarted();
  if (absl::Status s = Take(&next_clear_); !s.ok()) return s;
  if (tracking_ == Tracking::kOneStep) return absl::OkStatus();
  for (PageIndex page = run.first; page < run.end(); page += PageCount(1)) {
    if (pages.Test(page)) dirty_.view().TestAndClear(page);
  }
  return absl::OkStatus();
}

absl::Status SimulatedDirtySource::Restore(PageBitmapView unsent) {
  std::lock_guard lock(mutex_);
  if (!started_) return NotStarted();
  if (absl::Status s = Take(&next_restore_); !s.ok()) return s;
  dirty_.view().MergeFrom(unsent);
  return absl::OkStatus();
}

absl::Status SimulatedDirtySource::Stop() {
  std::lock_guard lock(mutex_);
  if (absl::Status s = Take(&next_stop_); !s.ok()) return s;
  started_ = false;
  dirty_.Reset();
  return absl::OkStatus();
}

}  // namespace postcopy
