// Precopy: which pages the destination still needs, and sending them.
#ifndef PAGESERVER_PRECOPY_ROUNDS_H_
#define PAGESERVER_PRECOPY_ROUNDS_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "pageserver/guest_memory.h"
#include "pageserver/page_batch.h"
#include "pageserver/rate_limiter.h"

namespace postcopy {

// How many pages at most the dirty source clears in one call. More makes calls
// fewer; less keeps the guest's stalls short, and pages are cleared closer to
// being read, so that fewer are sent again.
inline constexpr PageCount kClearPages{4096};

// Keeps two bits for each page of a VM:
//
//   unsent   the destination's copy is missing or old, and not on its way
//   unacked  sent since the last Acknowledge, so it may be lost yet
//
// A page leaves `unsent` only when its bytes are about to be read, after the
// dirty source has cleared it (kClearPages at a time), and enters
// it again when the guest writes it (Collect) or when the lane that carried it
// breaks (TakeBack). So at any time the pages the destination may lack are
// unsent, unacked, or still in the dirty source: none is forgotten.
//
// Used by one thread at a time. Two bits per page of memory.
class PrecopyRounds {
 public:
  // Hands a batch to the bulk lane; blocks while that is full.
  using Send = std::function<absl::Status(PageBatch& batch)>;

  // All outlive this. At first every page is unsent.
  static absl::StatusOr<std::unique_ptr<PrecopyRounds>> Create(
      const GuestMemory* memory, DirtySource* dirty_source,
      RateLimiter* limiter);

  // Starts dirty tracking. Must precede the first SendUnsent.
  absl::Status Start();

  // Moves the pages written since the last Collect from the dirty source to
  // `unsent`.
  absl::Status Collect();

  // As Collect, and shows the pages of this call alone in recent(), until
  // Acknowledge or TakeBack. REQUIRES: one of these has been called since the
  // last SendUnsent or CollectRecent.
  absl::Status CollectRecent();
  PageBitmapView recent() const { return unacked_.view(); }

  // Sends every unsent page in ascending order, zero pages as runs, holes
  // without touching them; paced by the limiter. Stops early, and returns OK,
  // when `interrupted` says so between two batches; what was not sent stays
  // unsent. On failure what was sent since the last Acknowledge is uncertain:
  // call TakeBack.
  absl::Status SendUnsent(const Send& send,
                          const std::function<bool()>& interrupted);

  // The destination has stored everything sent so far.
  void Acknowledge();

  // The lane broke: everything since the last Acknowledge is unsent again.
  void TakeBack();

  // Gives up: hands every unsent and unacknowledged page back to the dirty
  // source, then stops it. Both are tried; returns the first error.
  absl::Status Abort();

  PageBitmapView unsent() const { return unsent_.view(); }
  PageCount remaining() const { return remaining_; }

  // Sent so far, repeats included.
  PageCount sent_pages() const { return data_pages_ + zero_pages_; }
  PageCount data_pages() const { return data_pages_; }
  PageCount zero_pages() const { return zero_pages_; }

 private:
  PrecopyRounds(const GuestMemory* memory, DirtySource* dirty_source,
                RateLimiter* limiter, PageBitmap unsent, PageBitmap unacked);

  // Fills batch_ with unsent pages at or after `from`; returns where to go on.
  absl::StatusOr<PageIndex> FillBatch(PageIndex from);
  // Clears the chunk that begins at `from`, if this pass has not yet.
  absl::Status ClearFrom(PageIndex from);
  // Adds the beginning of `run` to batch_; returns how much of it.
  absl::StatusOr<PageCount> AddSome(PageRun run);
  void MarkSent(PageRun run);
  absl::Status SendBatch(const Send& send);

  const GuestMemory* const memory_;
  DirtySource* const dirty_source_;
  RateLimiter* const limiter_;
  PageBitmap unsent_;
  PageBitmap unacked_;
  PageBatch batch_;
  // The unsent pages before this one are cleared; of the pass of SendUnsent.
  PageIndex cleared_;
  // Set bits of unsent_.
  PageCount remaining_;
  PageCount data_pages_;
  PageCount zero_pages_;
  bool started_ = false;
};

}  // namespace postcopy

#endif  // PAGESERVER_PRECOPY_ROUNDS_H_
