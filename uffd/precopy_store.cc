#include "uffd/precopy_store.h"

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

}  // namespace

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
    const DestinationRam::Piece piece = ram_.FirstPiece(rest);
    ReceiveResult part = WritePiece(piece, data);
    result.received += part.received;
    result.removed += part.removed;
    result.status = std::move(part.status);
    data.remove_prefix(piece.bytes().value());
    rest = Rest(rest, piece.pages.count);
  }
  return result;
}

ReceiveResult PrecopyStore::WritePiece(const DestinationRam::Piece& piece,
                                       absl::Span<const uint8_t> data) {
  ReceiveResult result;
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
  // Received or not: the VMM may have written to a page before we came.
  result.status = Punch(run);
  if (result.status.ok()) {
    result.received = state_.MarkReceived(run, /*is_zero=*/true);
  } else {
    result.removed = state_.MarkMissing(run);
  }
  return result;
}

ReceiveResult PrecopyStore::Discard(PageBitmapView stale) {
  ReceiveResult result;
  // The guest may be stopped: what was missing before is only skipped.
  for (std::optional<PageRun> run = state_.NextReceivedRun(stale, PageIndex(0));
       run.has_value() && result.status.ok();
       run = state_.NextReceivedRun(stale, run->end())) {
    // Marked first: a page must never be received and empty.
    result.removed += state_.MarkMissing(*run);
    if (emptied_) result.status = Discard(*run);
  }
  if (!emptied_ && result.status.ok()) result.status = EmptyMissing();
  // After a failure it is not known what is empty.
  emptied_ = result.status.ok();
  begun_ = begun_ || emptied_;
  return result;
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
