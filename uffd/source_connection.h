// The destination's end of a session with the source, as the core sees it.
#ifndef UFFD_SOURCE_CONNECTION_H_
#define UFFD_SOURCE_CONNECTION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/page_source.h"

namespace postcopy {

// What comes over the bulk lane. Spans are valid until the next ReceiveBulk.

// Pages of a round or of a RequestBulk. Runs whose checksum did not fit are
// left out and counted.
struct PagesArrived {
  absl::Span<const ReceivedRun> runs;
  uint64_t damaged_runs = 0;
  // Of these, such that came compressed; and whether others that did could be
  // decompressed.
  uint64_t damaged_compressed_runs = 0;
  bool decompressed = false;
};
// Every page of `round` has been sent.
struct RoundEnded {
  uint32_t round = 0;
};
// Part of the stale set: little-endian bits from page `first` on, whose
// checksum fits. `first` is a multiple of 64, the length one of 8 bytes.
struct StalePiece {
  PageIndex first;
  absl::Span<const uint8_t> bits;
};
// What StalePiece named so far is to be discarded now, behind `round`.
struct EarlyDiscard {
  uint32_t round = 0;
};
// Part of the device state.
struct DeviceStatePiece {
  absl::string_view data;
};
// The stale set and the device state are complete.
struct SwitchOverComplete {
  PageCount stale;
  uint64_t device_state_bytes = 0;
  uint32_t device_state_crc32c = 0;
};
// The guest belongs to the destination.
struct Committed {};
// More of the pages that were written last, the most recent first: 1 to
// kReceivedDirtiedRunsMax runs of 1 to kMaxRamBytes' worth of pages.
struct PagesDirtied {
  std::vector<PageRun> runs;
};

// Runs taken from one message.
inline constexpr size_t kReceivedDirtiedRunsMax = 4096;

using BulkEvent =
    std::variant<PagesArrived, RoundEnded, StalePiece, EarlyDiscard,
                 DeviceStatePiece, SwitchOverComplete, Committed, PagesDirtied>;

// One session: its urgent and its bulk lane, each on a connection of its own.
//
// Three threads may use it at once: one receives bulk, one receives urgent, and
// any may send. Once either lane has ended, every call fails with the status
// that ended it: UNAVAILABLE (the network, the peer gone) or DATA_LOSS may be
// mended by opening another session; ABORTED (the migration is over at the
// source) may not, nor may other errors of a peer that does not follow the
// protocol.
class SourceConnection : public PageSource {
 public:
  // What the source calls the migration: random, the same in all sessions with
  // the one that has this guest's memory, and another with any other.
  virtual uint64_t session_id() const = 0;
  // True if the source had committed when the session was opened.
  virtual bool committed() const = 0;

  virtual absl::StatusOr<BulkEvent> ReceiveBulk() = 0;
  // Waits for the answer to a RequestUrgent; valid until the next call.
  virtual absl::StatusOr<absl::Span<const ReceivedRun>> ReceiveUrgent() = 0;

  virtual absl::Status SendRoundAck(uint32_t round, uint64_t damaged_runs) = 0;
  virtual absl::Status SendReady(PageCount discarded) = 0;
  virtual absl::Status SendResumed(int64_t vmm_nanos) = 0;

  // Says that nothing more will be asked for: the source ends the bulk lane
  // when it has taken what was sent, and ReceiveBulk returns. Any thread.
  virtual void EndRequests() { Abort(); }

  // Ends both lanes: calls that wait return soon. Any thread, any time.
  virtual void Abort() = 0;

  // Tells the source that every page is here. The lanes may have ended.
  virtual absl::Status Complete() = 0;
};

// Opens sessions with the source of one migration.
class SourceDialer {
 public:
  virtual ~SourceDialer() = default;
  // Opens the session of `epoch`; waits for the peer a bounded time, and
  // returns CANCELLED soon when `stop` is requested. UNAVAILABLE or
  // DEADLINE_EXCEEDED are worth another try.
  virtual absl::StatusOr<std::unique_ptr<SourceConnection>> Open(
      uint64_t epoch, std::stop_token stop) = 0;
  // Asks the source to compress nothing, in the sessions that are opened from
  // now on.
  virtual void ForgoCompression() {}
};

}  // namespace postcopy

#endif  // UFFD_SOURCE_CONNECTION_H_
