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
  switch (message.event) {
    case UFFD_EVENT_REMOVE: {
      Count(&counters_.removals);
      // Before the mark, which says that there are zeros or a hole.
      absl::Status emptied = Empty(range);
      if (emptied.ok()) GiveUp(range);
      return emptied;
    }
    case UFFD_EVENT_UNMAP:
      Count(&counters_.unmaps);
      GiveUp(range);
      return ram_.Unmap(range.address, range.length);
    default:
      Count(&counters_.remaps);
      // What was there the kernel has unmapped, and says so only if asked to.
      GiveUp({HostAddress(message.arg.remap.to), range.length});
      return ram_.Remap(range.address, HostAddress(message.arg.remap.to),
                        range.length);
  }
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
    if (const int error = piece.PunchHole()) {
      return absl::InternalError(
          absl::StrCat("what the VMM gave up, ", ToString(piece.pages),
                       ", cannot be emptied: ", ::strerrordesc_np(error)));
    }
    missing = state_.NextMissingRun(piece.pages.end());
  }
  return absl::OkStatus();
}

}  // namespace postcopy
