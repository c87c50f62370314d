#include "dirtytrack/measured_source.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {

double DirtyRound::PagesPerSecond() const {
  if (duration_nanos <= 0) return 0;
  return static_cast<double>(pages.value()) * kNanosPerSecond /
         static_cast<double>(duration_nanos);
}

absl::StatusOr<std::unique_ptr<MeasuredSource>> MeasuredSource::Create(
    std::unique_ptr<DirtySource> source, const RamLayout& layout,
    std::vector<Slot> slots, size_t rounds, Clock* clock) {
  if (rounds < 1 || rounds > kMaxRoundsKept) {
    return absl::InvalidArgumentError(absl::StrCat(
        "1 to ", kMaxRoundsKept, " rounds can be remembered, not ", rounds));
  }
  if (absl::Status s = CheckSlots(layout, slots); !s.ok()) return s;
  std::deque<PageBitmap> bitmaps;
  for (size_t i = 0; i < rounds + 1; ++i) {
    absl::StatusOr<PageBitmap> bitmap = PageBitmap::Create(layout.pages());
    if (!bitmap.ok()) return bitmap.status();
    bitmaps.push_back(*std::move(bitmap));
  }
  PageBitmap open = std::move(bitmaps.back());
  bitmaps.pop_back();
  return std::unique_ptr<MeasuredSource>(
      new MeasuredSource(std::move(source), std::move(slots),
                         std::move(bitmaps), std::move(open), clock));
}

MeasuredSource::MeasuredSource(std::unique_ptr<DirtySource> source,
                               std::vector<Slot> slots,
                               std::deque<PageBitmap> bitmaps, PageBitmap open,
                               Clock* clock)
    : source_(std::move(source)),
      slots_(std::move(slots)),
      clock_(clock),
      open_(std::move(open)),
      bitmaps_(std::move(bitmaps)) {}

absl::Status MeasuredSource::Start() {
  if (absl::Status s = source_->Start(); !s.ok()) return s;
  began_nanos_ = clock_->NowNanos();
  std::lock_guard lock(mutex_);
  open_.Reset();
  for (PageBitmap& bitmap : bitmaps_) bitmap.Reset();
  rounds_.clear();
  return absl::OkStatus();
}

absl::StatusOr<PageCount> MeasuredSource::Collect(PageBitmapView into) {
  // Checked first: what has been taken from the source must have a place.
  absl::Status status = CheckDirtySourceUse(true, open_.pages(), into);
  if (!status.ok()) return status;
  // Readers of statistics wait for a harvest at most.
  std::lock_guard lock(mutex_);
  status = source_->Collect(open_.view()).status();
  const PageCount set = into.MergeFrom(open_.view());
  if (!status.ok()) return status;
  EndRoundLocked();
  return set;
}

void MeasuredSource::EndRoundLocked() {
  const int64_t now = clock_->NowNanos();
  DirtyRound round{.duration_nanos = now - began_nanos_,
                   .pages = open_.view().Count()};
  began_nanos_ = now;
  for (const Slot& slot : slots_) {
    round.by_slot.push_back(open_.view().CountRun(slot.pages()));
  }
  rounds_.push_front(std::move(round));
  if (rounds_.size() > bitmaps_.size()) rounds_.pop_back();
  // The oldest one's memory is the next one's.
  PageBitmap next = std::move(bitmaps_.back());
  bitmaps_.pop_back();
  next.Reset();
  bitmaps_.push_front(std::exchange(open_, std::move(next)));
}

absl::Status MeasuredSource::Clear(PageBitmapView pages, PageRun run) {
  return source_->Clear(pages, run);
}

absl::Status MeasuredSource::Restore(PageBitmapView unsent) {
  return source_->Restore(unsent);
}

absl::Status MeasuredSource::Stop() { return source_->Stop(); }

std::vector<DirtyRound> MeasuredSource::Rounds() const {
  std::lock_guard lock(mutex_);
  return {rounds_.begin(), rounds_.end()};
}

size_t MeasuredSource::RoundsSinceDirty(PageIndex page) const {
  std::lock_guard lock(mutex_);
  size_t rounds = 0;
  while (rounds < bitmaps_.size() && !bitmaps_[rounds].view().Test(page)) {
    ++rounds;
  }
  return rounds;
}

}  // namespace postcopy
