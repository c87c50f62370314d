#include "dirtytrack/vhost_log.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <optional>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

absl::Status CheckHeight(const Slot& slot) {
  const uint64_t limit = kMaxVhostLoggedBytes.value();
  // No overflow: CheckSlots has seen that addresses do not wrap.
  if (slot.guest_physical_address + slot.length.value() <= limit) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      ToString(slot.id), " ends above guest-physical address ", limit,
      ", where a vhost log ends; map it lower, or run the back-end without "
      "migration"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<VhostLog>> VhostLog::Create(
    const RamLayout& layout, const std::vector<Slot>& slots) {
  if (absl::Status s = CheckSlots(layout, slots); !s.ok()) return s;
  std::vector<Window> windows;
  uint64_t end = 0;
  for (const Slot& slot : slots) {
    if (slot.id.address_space != 0) continue;
    if (absl::Status s = CheckHeight(slot); !s.ok()) return s;
    const uint64_t first = slot.guest_physical_address / kPageSize;
    windows.push_back({PageIndex(first), slot.pages()});
    end = std::max(end, first + slot.pages().count.value());
  }
  if (windows.empty()) {
    return absl::InvalidArgumentError(
        "no slot is in address space 0, so a device sees no RAM to log");
  }
  absl::StatusOr<PageBitmap> restored = PageBitmap::Create(layout.pages());
  if (!restored.ok()) return restored.status();
  const ByteCount bytes = PageBitmapView::ByteSize(PageCount(end));
  absl::StatusOr<UniqueFd> fd =
      CreateMemfd("postcopy-vhost-log", bytes, F_SEAL_SHRINK | F_SEAL_GROW);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(
      fd->get(), ByteCount(0), bytes, SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  const PageBitmapView log(
      reinterpret_cast<std::atomic<uint64_t>*>(mapping->data()),
      PageCount(end));
  return std::unique_ptr<VhostLog>(
      new VhostLog(*std::move(fd), *std::move(mapping), log, std::move(windows),
                   *std::move(restored)));
}

VhostLog::VhostLog(UniqueFd fd, SharedMapping mapping, PageBitmapView log,
                   std::vector<Window> windows, PageBitmap restored)
    : fd_(std::move(fd)),
      mapping_(std::move(mapping)),
      log_(log),
      windows_(std::move(windows)),
      restored_(std::move(restored)) {}

absl::Status VhostLog::CheckUse(PageBitmapView bitmap) const {
  return CheckDirtySourceUse(started_, restored_.pages(), bitmap);
}

absl::Status VhostLog::Start() {
  if (started_) {
    return absl::FailedPreconditionError("dirty tracking is already started");
  }
  started_ = true;
  return absl::OkStatus();
}

absl::StatusOr<PageCount> VhostLog::Collect(PageBitmapView into) {
  if (absl::Status s = CheckUse(into); !s.ok()) return s;
  PageCount set = into.MoveFrom(restored_.view());
  for (const Window& window : windows_) {
    const PageRun logged{window.in_log, window.ram.count};
    // No further: to look at a hole of the memfd is to allocate it.
    const PageBitmapView log = log_.First(logged.end() - PageIndex(0));
    PageIndex page = logged.first;
    while (auto run = log.NextSetRun(page)) {
      // Taken before it is reported, and read later still: what is written
      // meanwhile sets the bit again.
      log.ClearRun(*run);
      const PageIndex ram = window.ram.first + (run->first - logged.first);
      set += into.SetRun({ram, run->count});
      page = run->end();
    }
  }
  return set;
}

absl::Status VhostLog::Clear(PageBitmapView pages, PageRun run) {
  if (absl::Status s = CheckUse(pages); !s.ok()) return s;
  for (const Window& window : windows_) {
    PageIndex page = std::max(run.first, window.ram.first);
    const PageIndex end = std::min(run.end(), window.ram.end());
    while (page < end) {
      auto set = pages.NextSetRun(page, end - page);
      if (!set.has_value() || set->first >= end) break;
      set->count = std::min(set->count, end - set->first);
      log_.ClearRun(
          {window.in_log + (set->first - window.ram.first), set->count});
      page = set->end();
    }
  }
  return absl::OkStatus();
}

absl::Status VhostLog::Restore(PageBitmapView unsent) {
  if (absl::Status s = CheckUse(unsent); !s.ok()) return s;
  restored_.view().MergeFrom(unsent.First(restored_.pages()));
  return absl::OkStatus();
}

absl::Status VhostLog::Stop() {
  started_ = false;
  return absl::OkStatus();
}

}  // namespace postcopy
