// The source's end of a bulk stream, as the core sees it.
#ifndef PAGESERVER_BULK_LANE_H_
#define PAGESERVER_BULK_LANE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "pageserver/page_batch.h"

namespace postcopy {

// Most bytes of device state a VM may have.
inline constexpr uint64_t kDeviceStateBytesMax = 64 << 20;

// Most runs of recently dirtied pages in one message.
inline constexpr size_t kDirtiedRunsPerMessageMax = 4096;

// Everything up to the end of `round` is stored, but for `damaged_runs`.
struct RoundAck {
  uint32_t round = 0;
  uint64_t damaged_runs = 0;
};
// The destination has discarded stale pages and would serve faults.
struct SwitchOverReady {
  PageCount discarded;
};
// The guest runs at the destination, whose VMM took that long for it.
struct GuestResumed {
  int64_t vmm_nanos = 0;
};
// Asks for pages. Any numbers: the layout is yet to be consulted.
struct FetchRange {
  PageRun pages;
};
using BulkMessage =
    std::variant<RoundAck, SwitchOverReady, GuestResumed, FetchRange>;

// One attached bulk stream. Messages arrive in the order sent, so whatever
// follows pages is a barrier behind them. One thread sends and receives; Abort
// may come from any thread. Every call fails with UNAVAILABLE or CANCELLED once
// the stream has ended.
class BulkLane {
 public:
  virtual ~BulkLane() = default;

  // Blocks while the stream is full. May take the batch's strings, which then
  // hold unspecified bytes.
  virtual absl::Status SendPages(PageBatch& batch) = 0;
  virtual absl::Status SendRoundEnd(uint32_t round) = 0;
  // Sends the set bits of `stale` in pieces.
  virtual absl::Status SendStale(PageBitmapView stale) = 0;
  // Has the destination discard what SendStale named; answered by RoundAck.
  virtual absl::Status SendEarlyDiscard(uint32_t round) = 0;
  // Sends the device state in pieces, then the end of the switch-over.
  virtual absl::Status SendSwitchOver(PageCount stale,
                                      absl::string_view device_state) = 0;
  virtual absl::Status SendCommit() = 0;
  // Tells which pages were written last, the most recent first: a hint, behind
  // the commit. At most kDirtiedRunsPerMessageMax runs.
  virtual absl::Status SendRecentlyDirtied(absl::Span<const PageRun> runs) = 0;

  // Waits for the next message. INVALID_ARGUMENT if it is malformed.
  virtual absl::StatusOr<BulkMessage> Receive() = 0;

  // Ends the stream: calls that block fail soon.
  virtual void Abort() = 0;
};

}  // namespace postcopy

#endif  // PAGESERVER_BULK_LANE_H_
