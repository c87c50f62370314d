// Dirty pages from a log that other processes mark.
#ifndef DIRTYTRACK_SHARED_LOG_SOURCE_H_
#define DIRTYTRACK_SHARED_LOG_SOURCE_H_

#include <cstddef>
#include <cstdint>
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

// Logs of slots as they were before that may still have writers.
inline constexpr size_t kMaxSupersededLogs = 4;

// Reads a DirtyLogSet as its one reader. Whoever marks (the VMM, a thread that
// harvests KVM's log, a vhost-user back-end) marks all the time; Start and
// Stop only say whether anybody listens, so pages marked before Start are
// reported too.
//
// A writer whose process ends without giving its record back may have written
// pages that it did not mark. Then every page is reported once.
class SharedLogSource final : public DirtySource {
 public:
  // Asks whoever marks to bring the log up to date; returns when it is, or
  // with the error that Collect then returns. Called from Collect's thread,
  // without a lock held.
  using Sync = std::function<absl::Status()>;

  // `slots` say which RAM each slot of `log` shows. INVALID_ARGUMENT, naming
  // the slot or the RAM, unless they fit `layout` (CheckSlots), are exactly the
  // slots of `log`, and show all RAM between them: what no slot shows is not
  // tracked, and would be stale on the destination. Slots that are not logging
  // are started; UNAVAILABLE as StartLogging.
  static absl::StatusOr<std::unique_ptr<SharedLogSource>> Create(
      const RamLayout& layout, std::vector<Slot> slots, DirtyLogSet log,
      Sync sync);

  // The VM's slots have changed (slot_table.h): from here on `log`, made for
  // `slots`, is read as well as the log there was, which is superseded and read
  // until its last writer has left. Pages of slots that are not in both, alike,
  // are reported once. RAM that no slot shows any more cannot be written by a
  // guest, so unlike in Create there may be such.
  //
  // Errors as Create, and RESOURCE_EXHAUSTED if there are kMaxSupersededLogs
  // whose writers have not left; then nothing has changed.
  absl::Status Replace(std::vector<Slot> slots, DirtyLogSet log);

  // Logs that are being read.
  size_t log_count() const { return superseded_.size() + 1; }

  absl::Status Start() override;

  // Sync, then one switch of all slots. A page that several slots show is
  // reported once. Fails with what `sync` returns, or UNAVAILABLE as
  // DirtyLogSet::SwitchAll; INVALID_ARGUMENT if `into` is smaller than RAM.
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;

  // Nothing to do: every mark is reported.
  absl::Status Clear(PageBitmapView pages, PageRun run) override;

  // Kept here, not in the log: slots may be stopped, or show less of RAM.
  absl::Status Restore(PageBitmapView unsent) override;

  absl::Status Stop() override;

 private:
  // A log and what its slots show.
  struct Log {
    std::vector<Slot> slots;
    DirtyLogSet set;
    uint64_t writers_lost = 0;
  };

  SharedLogSource(RamLayout layout, PageBitmap pending, Log log, Sync sync);

  absl::StatusOr<PageCount> CollectFrom(Log& log, PageBitmapView into) const;
  absl::Status CheckUse(PageBitmapView bitmap) const;
  // Reports every page if a writer of `log` has died since this was asked last.
  PageCount CollectForTheDead(Log& log, PageBitmapView into) const;

  const RamLayout layout_;
  const Sync sync_;
  // To be reported by the next Collect, apart from what the logs say.
  const PageBitmap pending_;
  std::vector<Log> superseded_;  // oldest first
  Log log_;
  bool started_ = false;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_SHARED_LOG_SOURCE_H_
