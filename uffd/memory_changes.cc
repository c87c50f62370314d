#include "uffd/memory_changes.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"

namespace postcopy {
namespace {

void Count(std::atomic<uint64_t>* counter, uint64_t by = 1) {
  counter->fetch_add(by, std::memory_order_relaxed);
}

}  // namespace

bool MemoryChanges::Is(const uffd_msg& message) {
  return message.event == UFFD_EVENT_REMOVE ||
         message.event == UFFD_EVENT_UNMAP || message.event == UFFD_EVENT_REMAP;
}

MemoryChanges::Range MemoryChanges::WakeAfter(const uffd_msg& message) {
  POSTCOPY_CHECK(Is(message));
  if (message.event == UFFD_EVENT_REMAP) {
    return {HostAddress(message.arg.remap.from),
            ByteCount(message.arg.remap.len)};
  }
  return {HostAddress(message.arg.remove.start),
          ByteCount(message.arg.remove.end - message.arg.remove.start)};
}

absl::Status MemoryChanges::Apply(const uffd_msg& message) {
  const Range range = WakeAfter(message);
  const bool moved = message.event == UFFD_EVENT_REMAP;
  // What was where memory is moved to the kernel has unmapped, and says so only
  // if asked to.
  const Range lost =
      moved ? Range{HostAddress(message.arg.remap.to), range.length} : range;
  // Before the marks, which say that there are zeros or a hole.
  absl::Status emptied = Unstage(lost);
  if (emptied.ok() && message.event == UFFD_EVENT_REMOVE) {
    emptied = Empty(range);
  }
  if (!emptied.ok()) return emptied;
  GiveUp(lost);
  if (moved) {
    Count(&counters_.remaps);
    return ram_.Remap(range.address, lost.address, range.length);
  }
  if (message.event == UFFD_EVENT_REMOVE) {
    Count(&counters_.removals);
    return absl::OkStatus();
  }
  Count(&counters_.unmaps);
  return ram_.Unmap(range.address, range.length);
}

absl::Status MemoryChanges::Unstage(Range range) {
  if (!ram_.has_staging()) return absl::OkStatus();
  for (const PageRun part : ram_.PagesAt(range.address, range.length)) {
    const PageRun run = ram_.WholeUnits(part);
    if (run.count.empty()) continue;
    const DestinationRam::Piece piece = ram_.FirstPiece(run);
    absl::Status status = piece.staged ? Punch(piece) : absl::OkStatus();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status MemoryChanges::Punch(const DestinationRam::Piece& piece) {
  const int error = piece.PunchHole();
  if (error == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("what the VMM gave up, ", ToString(piece.pages),
                   ", cannot be emptied: ", ::strerrordesc_np(error)));
}

void MemoryChanges::GiveUp(Range range) {
  for (const PageRun part : ram_.PagesAt(range.address, range.length)) {
    const PageRun run = ram_.WholeUnits(part);
    if (run.count.empty()) continue;
    Count(&counters_.removed_pages,
          state_.MarkReceived(run, /*is_zero=*/true).value());
  }
}

absl::Status MemoryChanges::Empty(Range range) {
  for (const PageRun run : ram_.PagesAt(range.address, range.length)) {
    if (!strategies_[ram_.layout().RegionOf(run.first)]->replaces()) continue;
    absl::Status status = Empty(run);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status MemoryChanges::Empty(PageRun run) {
  std::optional<PageRun> missing = state_.NextMissingRun(run.first);
  while (missing.has_value() && missing->first < run.end()) {
    missing->count = std::min(missing->count, run.end() - missing->first);
    const DestinationRam::Piece piece = ram_.FirstPiece(*missing);
    if (absl::Status s = Punch(piece); !s.ok()) return s;
    missing = state_.NextMissingRun(piece.pages.end());
  }
  return absl::OkStatus();
}

}  // namespace postcopy
