#include "uffd/precopy_store.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

PageRun Rest(PageRun run, PageCount done) {
  return {run.first + done, run.count - done};
}

void AddTo(ReceiveResult* sum, ReceiveResult part) {
  sum->received += part.received;
  sum->removed += part.removed;
  sum->status = std::move(part.status);
}

}  // namespace

PrecopyStore::PrecopyStore(const DestinationRam* ram, PageState* state,
                           const InstallStrategies* strategies)
    : ram_(*ram), state_(*state), strategies_(*strategies) {
  if (ram->largest_unit() == PageCount(1)) return;
  const PageRun last = {PageIndex(0) + state->pages(), PageCount(0)};
  filled_.resize(SlotOf(last) + 1);
}

ReceiveResult PrecopyStore::Store(const ReceivedRun& run) {
  ReceiveResult result;
  // Before the first page: what the VMM has mapped by touching it, it would go
  // on to see, whatever is written behind it.
  if (!begun_) result.status = EmptyMissing();
  if (!result.status.ok()) return result;
  emptied_ = emptied_ || !begun_;
  begun_ = true;
  result = run.data.empty() ? StoreZero(run.pages) : StoreData(run);
  // What a failure has left behind is missing, and no hole.
  if (!result.status.ok()) emptied_ = false;
  return result;
}

ReceiveResult PrecopyStore::StoreData(const ReceivedRun& run) {
  ReceiveResult result;
  PageRun rest = run.pages;
  absl::Span<const uint8_t> data = run.data;
  while (!rest.count.empty() && result.status.ok()) {
    const DestinationRam::Piece piece = FirstPart(rest);
    AddTo(&result, WritePiece(piece, data));
    data.remove_prefix(piece.bytes().value());
    rest = Rest(rest, piece.pages.count);
  }
  return result;
}

DestinationRam::Piece PrecopyStore::FirstPart(PageRun run) const {
  DestinationRam::Piece piece = ram_.FirstPiece(run);
  if (piece.unit == PageCount(1)) return piece;
  const PageCount in_unit = ram_.UnitOf(run.first).end() - run.first;
  piece.pages.count = std::min(piece.pages.count, in_unit);
  return piece;
}

ReceiveResult PrecopyStore::WritePiece(const DestinationRam::Piece& piece,
                                       absl::Span<const uint8_t> data) {
  ReceiveResult result;
  if (piece.unit > PageCount(1)) Fill(ram_.UnitOf(piece.pages.first));
  ByteCount done;
  const int error = piece.Write(data.data(), &done);
  const PageCount stored(done.value() / kPageSize);
  result.received =
      state_.MarkReceived({piece.pages.first, stored}, /*is_zero=*/false);
  if (error == 0) return result;
  result.status = Error("store", piece.pages, error);
  if (done.value() % kPageSize != 0) {
    const PageRun torn = {piece.pages.first + stored, PageCount(1)};
    result.removed = state_.MarkMissing(torn);
  }
  return result;
}

ReceiveResult PrecopyStore::StoreZero(PageRun run) {
  ReceiveResult result;
  while (!run.count.empty() && result.status.ok()) {
    const DestinationRam::Piece piece = FirstPart(run);
    AddTo(&result, StoreZeroPiece(piece));
    run = Rest(run, piece.pages.count);
  }
  return result;
}

ReceiveResult PrecopyStore::StoreZeroPiece(const DestinationRam::Piece& piece) {
  ReceiveResult result;
  const bool huge = piece.unit > PageCount(1);
  const bool filled = huge && IsFilled(ram_.UnitOf(piece.pages.first));
  // A huge page that is not filled is a hole. A small one may be anything: the
  // VMM may have written to it before we came.
  const int error = huge && !filled ? 0 : piece.Clear();
  if (error == 0) {
    result.received = state_.MarkReceived(piece.pages, /*is_zero=*/!filled);
    return result;
  }
  result.status = Error("empty", piece.pages, error);
  result.removed = state_.MarkMissing(piece.pages);
  return result;
}

void PrecopyStore::Fill(PageRun unit) {
  if (IsFilled(unit)) return;
  filled_[SlotOf(unit)] = true;
  for (std::optional<PageRun> run = state_.NextReceivedRun(unit.first);
       run.has_value() && run->first < unit.end();
       run = state_.NextReceivedRun(run->end())) {
    const PageCount within = unit.end() - run->first;
    state_.MarkReceived({run->first, std::min(run->count, within)},
                        /*is_zero=*/false);
  }
}

void PrecopyStore::Unfill(PageRun run) {
  for (PageIndex at = run.first; at < run.end();) {
    const PageRun unit = ram_.UnitOf(at);
    filled_[SlotOf(unit)] = false;
    at = unit.end();
  }
}

ReceiveResult PrecopyStore::Discard(PageBitmapView stale) {
  ReceiveResult result;
  // The guest may be stopped: what was missing before is only skipped.
  for (std::optional<PageRun> run = state_.NextReceivedRun(stale, PageIndex(0));
       run.has_value() && result.status.ok();
       run = state_.NextReceivedRun(stale, run->end())) {
    Drop(Widened(*run), &result);
  }
  if (result.status.ok()) DropParts(&result);
  if (!emptied_ && result.status.ok()) result.status = EmptyMissing();
  // After a failure it is not known what is empty.
  emptied_ = result.status.ok();
  begun_ = begun_ || emptied_;
  return result;
}

void PrecopyStore::Drop(PageRun run, ReceiveResult* result) {
  // Marked first: a page must never be received and empty.
  result->removed += state_.MarkMissing(run);
  if (emptied_) result->status = Discard(run);
}

void PrecopyStore::DropParts(ReceiveResult* result) {
  for (size_t i = 0; i < ram_.region_count(); ++i) {
    const DestinationRam::Piece region = ram_.region(i);
    if (region.unit > PageCount(1)) DropPartsOf(region.pages, result);
  }
}

void PrecopyStore::DropPartsOf(PageRun region, ReceiveResult* result) {
  std::optional<PageRun> run = state_.NextMissingRun(region.first);
  while (run.has_value() && run->first < region.end() && result->status.ok()) {
    const PageIndex last = std::min(run->end(), region.end()) - PageCount(1);
    const PageRun head = ram_.UnitOf(run->first);
    const PageRun tail = ram_.UnitOf(last);
    if (IsPart(head)) Drop(head, result);
    if (tail != head && IsPart(tail) && result->status.ok()) Drop(tail, result);
    run = state_.NextMissingRun(tail.end());
  }
}

bool PrecopyStore::IsPart(PageRun unit) const {
  const std::optional<PageRun> run = state_.NextReceivedRun(unit.first);
  return run.has_value() && run->first < unit.end();
}

PageRun PrecopyStore::Widened(PageRun run) const {
  const PageIndex first = ram_.UnitOf(run.first).first;
  return {first, ram_.UnitOf(run.end() - PageCount(1)).end() - first};
}

absl::Status PrecopyStore::EmptyMissing() {
  for (std::optional<PageRun> run = state_.NextMissingRun(PageIndex(0));
       run.has_value(); run = state_.NextMissingRun(run->end())) {
    if (absl::Status s = Punch(*run); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status PrecopyStore::Discard(PageRun run) {
  while (!run.count.empty()) {
    const PageRun piece = ram_.FirstPiece(run).pages;
    const size_t region = ram_.layout().RegionOf(piece.first);
    if (!strategies_[region]->replaces()) {
      absl::Status status = Punch(piece);
      if (!status.ok()) return status;
    }
    run = Rest(run, piece.count);
  }
  return absl::OkStatus();
}

absl::Status PrecopyStore::Punch(PageRun run) {
  while (!run.count.empty()) {
    const DestinationRam::Piece piece = ram_.FirstPiece(run);
    const int error = piece.has_file() ? piece.PunchHole() : 0;
    if (error != 0) return Error("empty", piece.pages, error);
    if (piece.unit > PageCount(1)) Unfill(piece.pages);
    run = Rest(run, piece.pages.count);
  }
  return absl::OkStatus();
}

absl::Status PrecopyStore::Error(absl::string_view verb, PageRun run,
                                 int error) const {
  const Region& region =
      ram_.layout().regions()[ram_.layout().RegionOf(run.first)];
  const std::string what =
      absl::StrCat("cannot ", verb, " ", ToString(run), " of region \"",
                   region.name, "\": ", ::strerrordesc_np(error));
  if (error == ENOSPC || error == ENOMEM || error == EDQUOT) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what,
                     "; enlarge the tmpfs or memory cgroup that holds the "
                     "VM's memory, or free memory on this host"));
  }
  return absl::InternalError(what);
}

}  // namespace postcopy
