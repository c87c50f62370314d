#include "pageserver/precopy_rounds.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace postcopy {

absl::StatusOr<std::unique_ptr<PrecopyRounds>> PrecopyRounds::Create(
    const GuestMemory* memory, DirtySource* dirty_source,
    RateLimiter* limiter) {
  const PageCount pages = memory->layout().pages();
  absl::StatusOr<PageBitmap> unsent = PageBitmap::Create(pages);
  if (!unsent.ok()) return unsent.status();
  absl::StatusOr<PageBitmap> unacked = PageBitmap::Create(pages);
  if (!unacked.ok()) return unacked.status();
  unsent->view().SetRun({PageIndex(0), pages});
  return std::unique_ptr<PrecopyRounds>(new PrecopyRounds(
      memory, dirty_source, limiter, *std::move(unsent), *std::move(unacked)));
}

PrecopyRounds::PrecopyRounds(const GuestMemory* memory,
                             DirtySource* dirty_source, RateLimiter* limiter,
                             PageBitmap unsent, PageBitmap unacked)
    : memory_(memory),
      dirty_source_(dirty_source),
      limiter_(limiter),
      unsent_(std::move(unsent)),
      unacked_(std::move(unacked)),
      remaining_(unsent_.pages()) {}

absl::Status PrecopyRounds::Start() {
  if (absl::Status s = dirty_source_->Start(); !s.ok()) return s;
  started_ = true;
  return absl::OkStatus();
}

absl::Status PrecopyRounds::Collect() {
  // Without tracking every page is unsent and stays so.
  if (!started_) return absl::OkStatus();
  const absl::Status status = dirty_source_->Collect(unsent_.view()).status();
  // Counted anew: a Collect that fails may have moved pages before.
  remaining_ = unsent_.view().Count();
  return status;
}

absl::Status PrecopyRounds::CollectRecent() {
  if (!started_) return absl::OkStatus();
  // By way of the bitmap of what is under way, since nothing is: another would
  // cost a bit per page. What it leaves there is unsent as well, so Acknowledge
  // and TakeBack do no harm.
  const absl::Status status = dirty_source_->Collect(unacked_.view()).status();
  remaining_ += unsent_.view().MergeFrom(unacked_.view());
  return status;
}

void PrecopyRounds::MarkSent(PageRun run) {
  remaining_ -= unsent_.view().ClearRun(run);
  unacked_.view().SetRun(run);
}

absl::StatusOr<PageCount> PrecopyRounds::AddSome(PageRun run) {
  absl::StatusOr<PageIndex> data = memory_->NextData(run.first, run.end());
  if (!data.ok()) return data.status();
  if (*data > run.first) {
    const PageRun hole{run.first, *data - run.first};
    MarkSent(hole);
    batch_.AddZero(hole);
    return hole.count;
  }
  // There may be holes further on: reading them gives zeros.
  const PageRun pages{run.first, std::min(run.count, batch_.room())};
  // Sent before it is read: a write between the two would be reported by the
  // dirty source in any case, and a failed read is taken back.
  MarkSent(pages);
  if (absl::Status s = batch_.AddFrom(*memory_, pages); !s.ok()) return s;
  return pages.count;
}

absl::Status PrecopyRounds::ClearFrom(PageIndex from) {
  // Without tracking there is nothing to clear, and nothing is read for good.
  if (!started_ || from < cleared_) return absl::OkStatus();
  const PageCount left = unsent_.pages() - PageCount(from.value());
  const PageRun chunk{from, std::min(left, kClearPages)};
  if (absl::Status s = dirty_source_->Clear(unsent_.view(), chunk); !s.ok()) {
    return s;
  }
  cleared_ = chunk.end();
  return absl::OkStatus();
}

absl::StatusOr<PageIndex> PrecopyRounds::FillBatch(PageIndex from) {
  batch_.Clear();
  while (!batch_.full()) {
    std::optional<PageRun> run = unsent_.view().NextSetRun(from);
    if (!run.has_value()) return PageIndex(unsent_.pages().value());
    if (absl::Status s = ClearFrom(run->first); !s.ok()) return s;
    if (started_) run->count = std::min(run->count, cleared_ - run->first);
    absl::StatusOr<PageCount> added = AddSome(*run);
    if (!added.ok()) return added.status();
    from = run->first + *added;
  }
  return from;
}

absl::Status PrecopyRounds::SendBatch(const Send& send) {
  const PageCount data = batch_.data_pages();
  const PageCount zero = batch_.zero_pages();
  if (absl::Status s = send(batch_); !s.ok()) return s;
  data_pages_ += data;
  zero_pages_ += zero;
  // `send` may have compressed them.
  limiter_->Pace(batch_.sent_bytes());
  return absl::OkStatus();
}

absl::Status PrecopyRounds::SendUnsent(
    const Send& send, const std::function<bool()>& interrupted) {
  PageIndex at(0);
  cleared_ = at;
  const PageIndex end(unsent_.pages().value());
  while (at < end && !interrupted()) {
    absl::StatusOr<PageIndex> next = FillBatch(at);
    if (!next.ok()) return next.status();
    at = *next;
    if (batch_.empty()) break;
    if (absl::Status s = SendBatch(send); !s.ok()) return s;
  }
  return absl::OkStatus();
}

void PrecopyRounds::Acknowledge() { unacked_.Reset(); }

void PrecopyRounds::TakeBack() {
  remaining_ += unsent_.view().MoveFrom(unacked_.view());
}

absl::Status PrecopyRounds::Abort() {
  TakeBack();
  if (!started_) return absl::OkStatus();
  const absl::Status restored = dirty_source_->Restore(unsent_.view());
  const absl::Status stopped = dirty_source_->Stop();
  started_ = false;
  return restored.ok() ? stopped : restored;
}

}  // namespace postcopy
