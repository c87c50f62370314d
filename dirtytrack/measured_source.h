// A dirty source that keeps count, for whoever decides when to switch over.
#ifndef DIRTYTRACK_MEASURED_SOURCE_H_
#define DIRTYTRACK_MEASURED_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Rounds whose pages are remembered, at a bit per page each.
inline constexpr size_t kMaxRoundsKept = 8;

// What one Collect reported.
struct DirtyRound {
  int64_t duration_nanos = 0;  // since the Collect before it, or since Start
  PageCount pages;             // each once, whatever slots show it
  std::vector<PageCount> by_slot;

  // Pages written in a second, as far as that can be told: a page that is
  // written twice in a round counts once. 0 if the round took no time.
  double PagesPerSecond() const;
};

// Passes everything on to another source, and measures what it reports. Calls
// as for any source; the statistics may be read from any thread.
class MeasuredSource final : public DirtySource {
 public:
  // `rounds` are remembered page by page, 1 to kMaxRoundsKept. `slots` in any
  // order; INVALID_ARGUMENT unless they fit `layout` (CheckSlots).
  static absl::StatusOr<std::unique_ptr<MeasuredSource>> Create(
      std::unique_ptr<DirtySource> source, const RamLayout& layout,
      std::vector<Slot> slots, size_t rounds, Clock* clock);

  absl::Status Start() override;
  // A Collect that fails is no round: what it has reported counts in the next.
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;
  absl::Status Clear(PageBitmapView pages, PageRun run) override;
  absl::Status Restore(PageBitmapView unsent) override;
  absl::Status Stop() override;

  // The rounds since Start, newest first, at most as many as are kept.
  std::vector<DirtyRound> Rounds() const;

  // How long ago `page` was dirty: 0 is in the last round, 1 in the one before
  // it, and so on; as many as rounds are kept: in none of these.
  // REQUIRES: page < layout.pages().
  size_t RoundsSinceDirty(PageIndex page) const;

 private:
  MeasuredSource(std::unique_ptr<DirtySource> source, std::vector<Slot> slots,
                 std::deque<PageBitmap> bitmaps, PageBitmap open, Clock* clock);
  void EndRoundLocked();

  const std::unique_ptr<DirtySource> source_;
  const std::vector<Slot> slots_;
  Clock* const clock_;
  int64_t began_nanos_ = 0;

  mutable std::mutex mutex_;
  // Guarded by mutex_:
  PageBitmap open_;                 // of the round that has not ended
  std::deque<PageBitmap> bitmaps_;  // newest first; always as many as are kept
  std::deque<DirtyRound> rounds_;   // newest first
};

}  // namespace postcopy

#endif  // DIRTYTRACK_MEASURED_SOURCE_H_
