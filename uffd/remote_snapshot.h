// The missing pages of a VM that is restored from a snapshot on another host.
#ifndef UFFD_REMOTE_SNAPSHOT_H_
#define UFFD_REMOTE_SNAPSHOT_H_

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"
#include "uffd/large_page.h"
#include "uffd/page_source.h"
#include "uffd/pending_faults.h"
#include "uffd/snapshot_pages.h"
#include "uffd/source_connection.h"

namespace postcopy {

// A session of a snapshot. Pages of the connection are those of the file.
struct OpenedSnapshot {
  std::unique_ptr<SourceConnection> connection;
  ByteCount size;
  // Equal for the same content.
  uint64_t content_id = 0;
};

// Opens the sessions of one VM, one at a time. Thread-safe.
class SnapshotDialer {
 public:
  virtual ~SnapshotDialer() = default;
  // Takes the place of the one opened before. DATA_LOSS: the snapshot will
  // never be whole again. Any other error may pass.
  virtual absl::StatusOr<OpenedSnapshot> Open() = 0;
  // Open returns soon, now and from then on.
  virtual void Cancel() = 0;
  // Names the source and the snapshot, for messages.
  virtual std::string name() const = 0;
};

// Faulted pages of 2 MiB that are brought at a time; more wait. One is on the
// wire while the next is read.
inline constexpr size_t kUrgentLargePages = 2;

// Brings pages over the sessions of a dialer. What the wire takes at a time is
// kBatchPagesMax pages, so a large page comes in pieces, and is delivered when
// all of them are here. A session that is lost is opened again for as long as
// it takes. What the source sends is checked: pages that no extent has, or a
// bulk answer that is not the one due, end the session. Thread-safe, within the
// contract of PageSource.
//
// Two threads: the driver, which opens sessions and receives bulk, and one that
// receives urgent pages. They call the sink.
class RemoteSnapshot final : public SnapshotPages {
 public:
  struct Options {
    // Pause between two tries to reach the source: doubled from the first to
    // the last, until one session has brought something.
    int64_t retry_nanos_first = 20 * kNanosPerMilli;
    int64_t retry_nanos_last = kNanosPerSecond;
  };

  // Opens the first session. The dialer's errors; INVALID_ARGUMENT as of
  // SnapshotExtents::Create, or for an extent that does not begin at a multiple
  // of kPageSize in the file; RESOURCE_EXHAUSTED without a thread.
  static absl::StatusOr<std::unique_ptr<SnapshotPages>> Create(
      std::unique_ptr<SnapshotDialer> dialer,
      std::vector<SnapshotExtent> extents, SnapshotSink sink, Options options);

  RemoteSnapshot(const RemoteSnapshot&) = delete;
  RemoteSnapshot& operator=(const RemoteSnapshot&) = delete;
  // Stop().
  ~RemoteSnapshot() override { Stop(); }

  // 1 to kMaxUrgentPages distinct pages; of large ones the first PageIndex.
  // Errors as of SnapshotExtents::FindPage; INVALID_ARGUMENT for too many or no
  // pages; RESOURCE_EXHAUSTED beyond kMaxOutstandingFaults large pages;
  // UNAVAILABLE while the source is lost.
  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override;
  // Errors as of SnapshotExtents::FindRun; UNAVAILABLE while the source is
  // lost.
  absl::Status RequestBulk(PageRun run) override;

  void Stop() override;

 private:
  // Why receiving has ended.
  struct End {
    absl::Status status;
    // The sink does not take more, from whomever.
    bool by_sink = false;
  };

  // A large page that is coming in, piece by piece.
  class LargeFetch {
   public:
    bool busy() const { return place_.extent != nullptr; }
    const SnapshotExtent* extent() const { return place_.extent; }
    PageIndex first_in_file() const { return page_.pages().first; }
    bool complete() const { return page_.complete(); }

    void Begin(const SnapshotExtents::Place& place);
    void End() { place_.extent = nullptr; }
    // Takes `data` (empty: zeros) of `pages` of the file, which lie in it.
    void Add(PageRun pages, absl::Span<const uint8_t> data) {
      page_.Add(pages, data);
    }
    // What has been collected. REQUIRES: complete().
    ReceivedRun run() const { return {place_.pages, page_.data()}; }

   private:
    SnapshotExtents::Place place_;
    LargePage page_;
  };

  // A RequestBulk whose answer is due, behind those before it.
  struct BulkRequest {
    SnapshotExtents::Place place;
    PageCount received;
  };

  RemoteSnapshot(std::unique_ptr<SnapshotDialer> dialer,
                 SnapshotExtents extents, SnapshotSink sink, Options options,
                 OpenedSnapshot first);

  // The driver.
  void Drive();
  End ServeSession();
  End ReceiveBulk(SourceConnection& connection);
  End ReceiveUrgent(SourceConnection& connection);
  // The next session, after one that ended with `end`; null: Stop was called.
  // DATA_LOSS as of the dialer.
  absl::StatusOr<std::shared_ptr<SourceConnection>> Redial(
      const absl::Status& end);
  // Once more; UNAVAILABLE etc. if it is not the right one, or not there.
  absl::StatusOr<std::shared_ptr<SourceConnection>> TryDial();
  void Pause();
  void Forget();

  // Of the urgent receiver.
  End TakeUrgent(SourceConnection& connection,
                 absl::Span<const ReceivedRun> runs);
  End TakeUrgentRun(SourceConnection& connection, const ReceivedRun& run);
  End TakeLarge(SourceConnection& connection, const SnapshotExtent& extent,
                PageRun pages, absl::Span<const uint8_t> data);
  End DeliverSmall();
  absl::Status BeginWaiting(SourceConnection& connection);
  // Of the driver.
  End TakeBulk(const PagesArrived& pages);

  // REQUIRE send_mutex_.
  absl::Status AskLarge(SourceConnection& connection,
                        const SnapshotExtents::Place& place);
  absl::Status AskSmall(SourceConnection& connection);

  std::shared_ptr<SourceConnection> connection() const;

  // Constant after construction.
  const std::unique_ptr<SnapshotDialer> dialer_;
  const SnapshotExtents extents_;
  const SnapshotSink sink_;
  const Options options_;
  const ByteCount size_;
  const uint64_t content_id_;

  // The driver's, and what the urgent receiver uses.
  LargeFetch bulk_page_;
  std::vector<ReceivedRun> bulk_runs_;
  std::vector<ReceivedRun> small_runs_;
  PageCount small_pages_;
  int64_t pause_nanos_;
  // This session, something. Set by either thread.
  std::atomic<bool> brought_{false};

  // Held while urgent pages are asked for.
  std::mutex send_mutex_;
  std::vector<PageIndex> asked_;  // guarded by send_mutex_

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::shared_ptr<SourceConnection> connection_;  // null: it is lost
  bool stopping_ = false;
  std::deque<BulkRequest> bulk_;
  std::deque<SnapshotExtents::Place> large_waiting_;
  // Which are busy is guarded by mutex_, their content is the receiver's.
  std::array<LargeFetch, kUrgentLargePages> large_;

  std::mutex join_mutex_;
  std::thread driver_;
};

}  // namespace postcopy

#endif  // UFFD_REMOTE_SNAPSHOT_H_
