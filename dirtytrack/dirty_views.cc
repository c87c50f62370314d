#include "dirtytrack/dirty_views.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {

absl::StatusOr<std::unique_ptr<DirtyViews>> DirtyViews::Create(
    DirtySource* source, PageCount pages) {
  absl::StatusOr<PageBitmap> uncleared = PageBitmap::Create(pages);
  if (!uncleared.ok()) return uncleared.status();
  absl::StatusOr<PageBitmap> reported = PageBitmap::Create(pages);
  if (!reported.ok()) return reported.status();
  // Nobody has a view yet, so every view has every page; and the source may
  // have begun with all pages dirty.
  uncleared->view().SetRun({PageIndex(0), pages});
  return std::unique_ptr<DirtyViews>(
      new DirtyViews(source, *std::move(uncleared), *std::move(reported)));
}

DirtyViews::DirtyViews(DirtySource* source, PageBitmap uncleared,
                       PageBitmap reported)
    : source_(source),
      uncleared_(std::move(uncleared)),
      reported_(std::move(reported)) {}

absl::StatusOr<std::unique_ptr<DirtyViews::View>> DirtyViews::NewView() {
  absl::StatusOr<PageBitmap> dirty = PageBitmap::Create(uncleared_.pages());
  if (!dirty.ok()) return dirty.status();
  absl::StatusOr<PageBitmap> clearing = PageBitmap::Create(uncleared_.pages());
  if (!clearing.ok()) return clearing.status();
  dirty->view().SetRun({PageIndex(0), dirty->pages()});
  std::lock_guard lock(mutex_);
  if (views_.size() >= kMaxDirtyViews) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the dirty pages of this VM have ", kMaxDirtyViews,
                     " consumers already; end one of them first"));
  }
  // Not make_unique: the constructor is private.
  std::unique_ptr<View> view(
      new View(this, *std::move(dirty), *std::move(clearing)));
  views_.push_back(view.get());
  return view;
}

absl::Status DirtyViews::Sync() {
  std::lock_guard lock(mutex_);
  const absl::Status status = source_->Collect(reported_.view()).status();
  TellLocked();
  return status;
}

void DirtyViews::Merge(PageBitmapView pages) {
  std::lock_guard lock(mutex_);
  reported_.view().MergeFrom(pages);
  TellLocked();
}

void DirtyViews::TellLocked() {
  for (View* view : views_) view->dirty_.view().MergeFrom(reported_.view());
  uncleared_.view().MoveFrom(reported_.view());
}

DirtyViews::View::View(DirtyViews* owner, PageBitmap dirty, PageBitmap clearing)
    : owner_(owner), dirty_(std::move(dirty)), clearing_(std::move(clearing)) {}

DirtyViews::View::~View() {
  std::lock_guard lock(owner_->mutex_);
  std::erase(owner_->views_, this);
}

absl::StatusOr<PageCount> DirtyViews::View::Collect(PageBitmapView into) {
  absl::Status status = CheckDirtySourceUse(true, dirty_.pages(), into);
  if (!status.ok()) return status;
  if (absl::Status s = owner_->Sync(); !s.ok()) return s;
  std::lock_guard lock(owner_->mutex_);
  return into.MergeFrom(dirty_.view());
}

absl::Status DirtyViews::View::Clear(PageBitmapView pages, PageRun run) {
  std::lock_guard lock(owner_->mutex_);
  const PageBitmapView uncleared = owner_->uncleared_.view();
  ForEachWord(run, [&](size_t i, uint64_t mask) {
    clearing_.view().OrWord(i, mask & pages.LoadWord(i) &
                                   uncleared.LoadWord(i) &
                                   dirty_.view().LoadWord(i));
  });
  // First in the source: what is written after this call has to be told.
  absl::Status status = owner_->source_->Clear(clearing_.view(), run);
  ForEachWord(run, [&](size_t i, uint64_t mask) {
    const uint64_t cleared = clearing_.view().TakeWord(i);
    if (!status.ok()) return;
    uncleared.ClearWord(i, cleared);
    dirty_.view().ClearWord(i, mask & pages.LoadWord(i));
  });
  return status;
}

absl::Status DirtyViews::View::Restore(PageBitmapView unsent) {
  absl::Status status = CheckDirtySourceUse(true, dirty_.pages(), unsent);
  if (!status.ok()) return status;
  std::lock_guard lock(owner_->mutex_);
  dirty_.view().MergeFrom(unsent.First(dirty_.pages()));
  return absl::OkStatus();
}

}  // namespace postcopy
