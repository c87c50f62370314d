// Dirty pages from a log that other processes mark.
#ifndef DIRTYTRACK_SHARED_LOG_SOURCE_H_
#define DIRTYTRACK_SHARED_LOG_SOURCE_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/dirty_log.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Reads a DirtyLogSet as its one reader. Whoever marks (the VMM, a thread that
// harvests KVM's log, a vhost-user back-end) marks all the time; Start and
// Stop only say whether anybody listens, so pages marked before Start are
// reported too.
class SharedLogSource final : public DirtySource {
 public:
  // Asks whoever marks to bring the log up to date; returns when it is, or
  // with the error that Collect then returns. Called from Collect's thread,
  // without a lock held.
  using Sync = std::function<absl::Status()>;

  // `slots` say which RAM each slot of `log` shows. INVALID_ARGUMENT, naming
  // the slot or the RAM, unless they fit `layout` (CheckSlots), are exactly the
  // slots of `log`, and show all RAM between them: what no slot shows is not
  // tracked, and would be stale on the destination. RESOURCE_EXHAUSTED if
  // the log has no writer record left, which Restore needs.
  static absl::StatusOr<std::unique_ptr<SharedLogSource>> Create(
      const RamLayout& layout, std::vector<Slot> slots, DirtyLogSet log,
      Sync sync);

  absl::Status Start() override;

  // Sync, then one switch of all slots. A page that several slots show is
  // reported once. Fails with what `sync` returns, or UNAVAILABLE as
  // DirtyLogSet::SwitchAll; INVALID_ARGUMENT if `into` is smaller than RAM.
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;

  // Nothing to do: every mark is reported.
  absl::Status Clear(PageBitmapView pages, PageRun run) override;

  // Marks each page in one of the slots that show it.
  absl::Status Restore(PageBitmapView unsent) override;

  absl::Status Stop() override;

 private:
  SharedLogSource(PageCount pages, std::vector<Slot> slots,
                  std::vector<SlotCover> covers, DirtyLogSet log,
                  DirtyLogWriter writer, Sync sync);

  absl::StatusOr<PageCount> DrainAll(PageBitmapView into);
  absl::Status CheckUse(PageBitmapView bitmap) const;

  const PageCount pages_;
  const std::vector<Slot> slots_;
  const std::vector<SlotCover> covers_;  // where Restore marks
  const Sync sync_;
  DirtyLogSet log_;
  DirtyLogWriter writer_;
  bool started_ = false;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_SHARED_LOG_SOURCE_H_
