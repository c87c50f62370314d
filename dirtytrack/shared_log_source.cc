#include "dirtytrack/shared_log_source.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

// OK if `slots` are exactly the slots of `log`.
absl::Status CheckSameSlots(std::vector<Slot> slots, const DirtyLogSet& log) {
  std::sort(slots.begin(), slots.end(),
            [](const Slot& a, const Slot& b) { return a.id < b.id; });
  if (slots.size() != log.slots().size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the VM has ", slots.size(), " slots and its dirty log ",
                     log.slots().size(), "; make the log for the VM's slots"));
  }
  for (size_t i = 0; i < slots.size(); ++i) {
    const DirtyLogSlot& logged = log.slots()[i];
    const DirtyLogSlot expected{slots[i].id, slots[i].pages().count};
    if (logged != expected) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the dirty log has ", ToString(logged.id), " with ",
          ToString(logged.pages), " where the VM has ", ToString(expected.id),
          " with ", ToString(expected.pages)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<SharedLogSource::Cover>> SharedLogSource::CoverAll(
    const RamLayout& layout, const std::vector<Slot>& slots) {
  std::vector<Slot> by_start = slots;
  std::sort(by_start.begin(), by_start.end(),
            [](const Slot& a, const Slot& b) { return a.start < b.start; });
  std::vector<Cover> covers;
  PageIndex end;  // RAM below is covered
  for (const Slot& slot : by_start) {
    const PageRun shown = slot.pages();
    if (shown.first > end) break;  // a gap
    if (shown.end() <= end) continue;
    covers.push_back({{end, shown.end() - end},
                      slot.id,
                      PageIndex((end - shown.first).value())});
    end = shown.end();
  }
  if (end.value() == layout.pages().value()) return covers;
  return absl::InvalidArgumentError(absl::StrCat(
      "no slot shows the page at ", ToString(OffsetOf(end)),
      ", so writes to it cannot be tracked; describe the slots of all of the "
      "VM's RAM of ",
      ToString(layout.bytes())));
}

absl::StatusOr<std::unique_ptr<SharedLogSource>> SharedLogSource::Create(
    const RamLayout& layout, std::vector<Slot> slots, DirtyLogSet log,
    Sync sync) {
  if (absl::Status s = CheckSlots(layout, slots); !s.ok()) return s;
  absl::StatusOr<std::vector<Cover>> covers = CoverAll(layout, slots);
  if (!covers.ok()) return covers.status();
  if (absl::Status s = CheckSameSlots(slots, log); !s.ok()) return s;
  absl::StatusOr<DirtyLogWriter> writer = log.NewWriter();
  if (!writer.ok()) return writer.status();
  // Not make_unique: the constructor is private.
  return std::unique_ptr<SharedLogSource>(
      new SharedLogSource(layout.pages(), std::move(slots), *std::move(covers),
                          std::move(log), *std::move(writer), std::move(sync)));
}

SharedLogSource::SharedLogSource(PageCount pages, std::vector<Slot> slots,
                                 std::vector<Cover> covers, DirtyLogSet log,
                                 DirtyLogWriter writer, Sync sync)
    : pages_(pages),
      slots_(std::move(slots)),
      covers_(std::move(covers)),
      sync_(std::move(sync)),
      log_(std::move(log)),
      writer_(std::move(writer)) {}

absl::Status SharedLogSource::Start() {
  if (started_) {
    return absl::FailedPreconditionError("dirty tracking is already started");
  }
  started_ = true;
  return absl::OkStatus();
}

absl::Status SharedLogSource::Stop() {
  started_ = false;
  return absl::OkStatus();
}

absl::Status SharedLogSource::CheckUse(PageBitmapView bitmap) const {
  return CheckDirtySourceUse(started_, pages_, bitmap);
}

absl::StatusOr<PageCount> SharedLogSource::DrainAll(PageBitmapView into) {
  PageCount set;
  for (const Slot& slot : slots_) {
    absl::StatusOr<PageCount> moved =
        log_.Drain(slot.id, into, PageOf(slot.start));
    if (!moved.ok()) return moved.status();
    set += *moved;
  }
  return set;
}

absl::StatusOr<PageCount> SharedLogSource::Collect(PageBitmapView into) {
  if (absl::Status s = CheckUse(into); !s.ok()) return s;
  if (absl::Status s = sync_(); !s.ok()) return s;
  // First what a switch that failed, or a reader before this one, has left:
  // a switch would put it back into the active bitmap, for the next Collect,
  // and this one may be the last.
  if (absl::Status s = log_.Settle(); !s.ok()) return s;
  absl::StatusOr<PageCount> left = DrainAll(into);
  if (!left.ok()) return left;
  absl::StatusOr<SwitchResult> result = log_.SwitchAll();
  if (!result.ok()) return result.status();
  absl::StatusOr<PageCount> set = DrainAll(into);
  if (!set.ok()) return set;
  return *left + *set;
}

absl::Status SharedLogSource::Clear(PageBitmapView pages, PageRun) {
  return CheckUse(pages);
}

absl::Status SharedLogSource::Restore(PageBitmapView unsent) {
  if (absl::Status s = CheckUse(unsent); !s.ok()) return s;
  for (const Cover& cover : covers_) {
    PageIndex page = cover.ram.first;
    while (auto run = unsent.NextSetRun(page)) {
      if (run->first >= cover.ram.end()) break;
      const PageIndex end = std::min(run->end(), cover.ram.end());
      const PageIndex first =
          cover.first_in_slot + (run->first - cover.ram.first);
      const bool marked =
          writer_.MarkRun(cover.slot, {first, end - run->first});
      POSTCOPY_CHECK(marked);  // Create has seen that covers lie in slots
      page = end;
    }
  }
  return absl::OkStatus();
}

}  // namespace postcopy
