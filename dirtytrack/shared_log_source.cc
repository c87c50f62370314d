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

absl::StatusOr<PageCount> DrainAll(const std::vector<Slot>& slots,
                                   DirtyLogSet& set, PageBitmapView into) {
  PageCount moved;
  for (const Slot& slot : slots) {
    absl::StatusOr<PageCount> of_slot =
        set.Drain(slot.id, into, PageOf(slot.start));
    if (!of_slot.ok()) return of_slot;
    moved += *of_slot;
  }
  return moved;
}

// Who is to be told of every write wants no slot to be stopped.
absl::Status StartAll(DirtyLogSet& log) {
  for (const DirtyLogSlot& slot : log.slots()) {
    if (absl::Status s = log.StartLogging(slot.id); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// Sets the pages of those of `slots` that `others` has not just so.
void SetPagesOfOthers(const std::vector<Slot>& slots,
                      const std::vector<Slot>& others, PageBitmapView into) {
  for (const Slot& slot : slots) {
    if (std::find(others.begin(), others.end(), slot) == others.end()) {
      into.SetRun(slot.pages());
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedLogSource>> SharedLogSource::Create(
    const RamLayout& layout, std::vector<Slot> slots, DirtyLogSet log,
    Sync sync) {
  if (absl::Status s = CheckSlots(layout, slots); !s.ok()) return s;
  if (absl::Status s = CoverRam(layout, slots).status(); !s.ok()) return s;
  if (absl::Status s = CheckSameSlots(slots, log); !s.ok()) return s;
  if (absl::Status s = StartAll(log); !s.ok()) return s;
  absl::StatusOr<PageBitmap> pending = PageBitmap::Create(layout.pages());
  if (!pending.ok()) return pending.status();
  // Not make_unique: the constructor is private.
  return std::unique_ptr<SharedLogSource>(
      new SharedLogSource(layout, *std::move(pending),
                          {std::move(slots), std::move(log)}, std::move(sync)));
}

SharedLogSource::SharedLogSource(RamLayout layout, PageBitmap pending, Log log,
                                 Sync sync)
    : layout_(std::move(layout)),
      sync_(std::move(sync)),
      pending_(std::move(pending)),
      log_(std::move(log)) {}

absl::Status SharedLogSource::Replace(std::vector<Slot> slots,
                                      DirtyLogSet log) {
  if (absl::Status s = CheckSlots(layout_, slots); !s.ok()) return s;
  if (absl::Status s = CheckSameSlots(slots, log); !s.ok()) return s;
  if (superseded_.size() >= kMaxSupersededLogs) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the VM's slots have changed ", kMaxSupersededLogs,
        " times and writers still hold all the dirty logs of before; have "
        "them open the new log and close the old one"));
  }
  if (absl::Status s = StartAll(log); !s.ok()) return s;
  SetPagesOfOthers(slots, log_.slots, pending_.view());
  SetPagesOfOthers(log_.slots, slots, pending_.view());
  log_.set.Supersede();
  superseded_.push_back(std::move(log_));
  log_ = {std::move(slots), std::move(log)};
  return absl::OkStatus();
}

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
  return CheckDirtySourceUse(started_, layout_.pages(), bitmap);
}

PageCount SharedLogSource::CollectForTheDead(Log& log,
                                             PageBitmapView into) const {
  const uint64_t lost = log.set.ReapDeadWriters();
  if (lost == log.writers_lost) return PageCount(0);
  log.writers_lost = lost;
  return into.SetRun({PageIndex(0), layout_.pages()});
}

absl::StatusOr<PageCount> SharedLogSource::CollectFrom(
    Log& log, PageBitmapView into) const {
  // First what a switch that failed, or a reader before this one, has left:
  // a switch would put it back into the active bitmap, for the next Collect,
  // and this one may be the last.
  if (absl::Status s = log.set.Settle(); !s.ok()) return s;
  absl::StatusOr<PageCount> set = DrainAll(log.slots, log.set, into);
  if (!set.ok()) return set;
  absl::StatusOr<SwitchResult> result = log.set.SwitchAll();
  if (!result.ok()) return result.status();
  absl::StatusOr<PageCount> switched = DrainAll(log.slots, log.set, into);
  if (!switched.ok()) return switched;
  // Last: the switch may have met a dead writer, and pages are read after this.
  return *set + *switched + CollectForTheDead(log, into);
}

absl::StatusOr<PageCount> SharedLogSource::Collect(PageBitmapView into) {
  if (absl::Status s = CheckUse(into); !s.ok()) return s;
  if (absl::Status s = sync_(); !s.ok()) return s;
  PageCount set = into.MoveFrom(pending_.view());
  for (auto log = superseded_.begin(); log != superseded_.end();) {
    // Asked first: who has left by now has marked all it will ever mark.
    const bool done = !log->set.HasWriters();
    absl::StatusOr<PageCount> of_log = CollectFrom(*log, into);
    if (!of_log.ok()) return of_log;
    set += *of_log;
    log = done ? superseded_.erase(log) : log + 1;
  }
  absl::StatusOr<PageCount> of_log = CollectFrom(log_, into);
  if (!of_log.ok()) return of_log;
  return set + *of_log;
}

absl::Status SharedLogSource::Clear(PageBitmapView pages, PageRun) {
  return CheckUse(pages);
}

absl::Status SharedLogSource::Restore(PageBitmapView unsent) {
  if (absl::Status s = CheckUse(unsent); !s.ok()) return s;
  pending_.view().MergeFrom(unsent.First(layout_.pages()));
  return absl::OkStatus();
}

}  // namespace postcopy
