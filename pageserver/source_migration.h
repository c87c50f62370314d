// One migration on the source: from the first round until the destination
// says that it has every page.
#ifndef PAGESERVER_SOURCE_MIGRATION_H_
#define PAGESERVER_SOURCE_MIGRATION_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/migration_phase.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/run_compression.h"
#include "dirtytrack/types.h"
#include "pageserver/bulk_lane.h"
#include "pageserver/guest_memory.h"
#include "pageserver/page_batch.h"
#include "pageserver/precopy_rounds.h"
#include "pageserver/rate_limiter.h"
#include "pageserver/recently_dirtied.h"
#include "pageserver/session_key.h"
#include "pageserver/switch_over_advice.h"

namespace postcopy {

// Where a migration stands at the source; dirtytrack/migration_phase.h has the
// table.
//
//   kPreparing --> kPrecopy --> kSwitching --> kPostcopy --> kCompleted
//       |             |             |     ^ committed
//       +-------------+-------------+--> kCancelled, or kFailed
using SourcePhase = MigrationPhase;

// What the source asks of the VMM. Each may block for as long as the VMM's
// command time-out and is called without a lock held.
struct SourceGuest {
  // Stops the vCPUs and brings the dirty log up to date.
  std::function<absl::Status()> pause;
  std::function<absl::StatusOr<std::string>()> save_device_state;
  std::function<absl::Status()> resume;
  // Notes that the guest is another host's from now on. May be empty. The one
  // call with a lock held: must not block.
  std::function<void()> handed_over;
  // Tells that the migration has ended, well or not.
  std::function<void(bool completed)> ended;
};

// Times that stale pages are discarded at the destination before the guest is
// stopped. The first takes about 0.5 us for each of them; the second is for
// what the guest has written during the first.
inline constexpr int kEarlyDiscards = 2;

// More than a destination needs to discard a page.
inline constexpr int64_t kDiscardNanosPerPage = 5 * kNanosPerMicro;

// Times that precopy-only sends damaged pages again with the guest stopped.
inline constexpr int kRestRoundsMax = 8;

// Urgent streams of a session at a time. A destination has one.
inline constexpr size_t kUrgentStreamsMax = 8;

struct SourceOptions {
  MigrationPolicy policy = MigrationPolicy::kPrecopyThenPostcopy;
  uint32_t rounds_max = 0;
  ByteCount bulk_limit_per_second;
  // Compress pages on the bulk lane for a destination that takes it.
  bool compress = false;
  // Switch over as soon as it is recommended.
  bool switch_by_itself = false;
  // Recommend it after so much precopy for each GiB of RAM, begun ones
  // included; 0: never.
  int64_t deadline_nanos_per_gib = 0;
  // How long a lost destination may take to come back during precopy.
  int64_t reconnect_nanos = 10 * kNanosPerSecond;
  // How long a switch-over may make no progress with the guest stopped; while
  // it still runs, reconnect_nanos if that is longer. kDiscardNanosPerPage is
  // added for each page the destination may have to discard.
  int64_t switch_stall_nanos = 5 * kNanosPerSecond;
  // Least time from the start of one round to the start of the next, so that
  // an idle guest does not cost a CPU while a switch-over is awaited.
  int64_t round_nanos_min = 50 * kNanosPerMilli;
  // Told each change of phase or message, in order. With a lock held: must
  // neither block nor call the migration. May be empty.
  std::function<void(MigrationPhase phase, const std::string& message)>
      on_change;
};

// What a destination says, when it opens a session, that it can take.
struct SessionWishes {
  // RecentlyDirtied messages. An older destination would end the session at
  // one.
  bool recently_dirtied = false;
  // Runs compressed by RunCompressor, on the bulk lane. An older destination
  // would take them for damaged.
  bool compressed_runs = false;
  // Urgent pages in any order. An older destination may rely on the one in
  // which it asked.
  bool urgent_any_order = false;
};

// After how long a switch-over of `ram` is recommended in any case; 0: never.
int64_t DeadlineNanos(PageCount ram, int64_t nanos_per_gib);

// What others may know of a migration at one moment.
struct SourceSnapshot {
  SourcePhase phase = SourcePhase::kPreparing;
  std::string message;
  // When the phase began, by the monotonic clock.
  int64_t phase_since_ns = 0;
  // Per second; 0: none.
  ByteCount bulk_limit;
  uint32_t rounds = 0;
  PageCount total;
  PageCount zero;
  PageCount precopied;
  PageCount remaining;
  PageCount stale;
  PageCount discarded;
  PageCount faulted;
  PageCount background;
  uint64_t damaged_runs = 0;
  // Bytes of pages with data that went over the bulk lane, and what they were
  // on the wire.
  ByteCount bulk_page_bytes;
  ByteCount bulk_sent_bytes;
  uint64_t precopy_bytes_per_second = 0;
  Advice advice;
  Estimate estimate;
  int64_t downtime_nanos = 0;
  int64_t added_downtime_nanos = 0;
  uint32_t recoveries = 0;
};

// An urgent stream as its migration sees it.
class UrgentStream {
 public:
  virtual ~UrgentStream() = default;
  // Ends it soon. From any thread, with a lock held: must not block.
  virtual void Abort() = 0;
};

// The source's half of one migration. The rules it keeps:
//
//  - Before the commit everything can be undone, and is, on any error: the
//    guest goes on here, every page the destination may lack is back in the
//    dirty source.
//  - The commit happens once, in memory, before the message that tells the
//    destination is sent. From then on the guest never runs here again, and its
//    memory is served unchanged for as long as it takes.
//  - Only the stream of the newest epoch is listened to.
//
// A thread of its own watches over a switch-over that nobody asked for.
//
// Thread-safe. ServeBulk runs on the thread of the stream; RequestSwitchOver
// and Cancel on those of the control plane.
class SourceMigration {
 public:
  // `clock` outlives this. RESOURCE_EXHAUSTED if there is no memory for two
  // bits per page or, if asked for, to compress.
  static absl::StatusOr<std::unique_ptr<SourceMigration>> Create(
      std::unique_ptr<GuestMemory> memory,
      std::unique_ptr<DirtySource> dirty_source, SourceGuest guest,
      SourceOptions options, Clock* clock);

  // REQUIRES: no call is in progress.
  ~SourceMigration();

  // Random, the same for all sessions.
  uint64_t session_id() const { return session_id_; }

  // The data plane.
  //
  // Opens the session of `epoch`, ending the streams of the one before.
  // FAILED_PRECONDITION if the layout differs or the epoch is not higher than
  // any that had a stream; ABORTED if the migration has ended badly. `peer` is
  // whatever names who asks: whoever opens a session first is the migration's
  // destination to its end, and for others it is PERMISSION_DENIED.
  absl::StatusOr<SessionKey> OpenSession(uint64_t epoch,
                                         const RamLayout& destination,
                                         SessionWishes wishes = {},
                                         absl::string_view peer = {});
  // To be asked before anything below: PERMISSION_DENIED unless `peer` has
  // opened the session.
  absl::Status CheckPeer(absl::string_view peer) const;
  // Serves the bulk stream of the session until it ends; returns what to end it
  // with. `lane` is not used after that.
  absl::Status ServeBulk(SessionKey key, BulkLane* lane);
  // What an urgent stream keeps for its lifetime, which ends with DetachUrgent,
  // to be called if this succeeded and before `stream` is destroyed. It is
  // aborted, at most once, when a session with a higher epoch is opened, or by
  // EndStreams. FAILED_PRECONDITION unless `key` is the newest session; ABORTED
  // if the migration has ended; RESOURCE_EXHAUSTED if the session has
  // kUrgentStreamsMax of them.
  absl::StatusOr<std::shared_ptr<const GuestMemory>> AttachUrgent(
      SessionKey key, UrgentStream* stream);
  void DetachUrgent(UrgentStream* stream);
  // FAILED_PRECONDITION unless `key` is the newest session, NOT_FOUND if it is
  // none of this migration.
  absl::Status CheckEpoch(SessionKey key) const;
  // What the destination of the newest session takes.
  SessionWishes wishes() const;
  // Reads faulted pages, in the order given, into `batch` after clearing it.
  // No lock, no allocation once `batch` is warm. FAILED_PRECONDITION unless
  // `key` is the newest session and the source is committed; OUT_OF_RANGE if a
  // page lies outside the layout; INVALID_ARGUMENT for more than
  // kBatchPagesMax.
  absl::Status ReadUrgent(SessionKey key, const GuestMemory& memory,
                          absl::Span<const PageIndex> pages, PageBatch& batch);
  // Every page is at the destination. Idempotent.
  absl::Status Complete(SessionKey key);
  // Aborts the streams there are. For a migration that has ended and that
  // nobody can find any more: its destination may be one that keeps them.
  void EndStreams();

  // The control plane.
  //
  // Hands the guest over; returns when that is decided. FAILED_PRECONDITION if
  // there is no destination yet, ABORTED with the reason if the guest goes on
  // here. OK also if it had been handed over before.
  absl::Status RequestSwitchOver();
  // FAILED_PRECONDITION after the commit. OK if already cancelled.
  absl::Status Cancel();
  // Of the bulk lane, from now on; 0: none. FAILED_PRECONDITION if the
  // migration has ended.
  absl::Status SetBulkLimit(ByteCount per_second);
  // OK, or why a command that a source never carries out, or kDelete, is
  // refused.
  absl::Status Refuse(MigrationEvent command) const;
  // The VMM's connection ended.
  void VmmGone();

  bool committed() const { return committed_.load(std::memory_order_acquire); }
  SourcePhase phase() const;
  SourceSnapshot Snapshot() const;
  // The last changes of phase, oldest first.
  std::vector<PhaseChange> Changes() const;
  // Counts changes of phase and message.
  uint64_t version() const;
  // Returns when version() differs from `seen`, or after `nanos`.
  void WaitForChange(uint64_t seen, int64_t nanos) const;

 private:
  SourceMigration(std::unique_ptr<GuestMemory> memory,
                  std::unique_ptr<DirtySource> dirty_source, SourceGuest guest,
                  SourceOptions options, Clock* clock);

  absl::Status CheckPeerLocked(absl::string_view peer) const;
  // OK, or why the command is refused now.
  absl::Status PermitLocked(MigrationEvent command) const;
  // How long a switch-over that was asked for may make no progress.
  int64_t PatienceLocked() const;
  // Does what the table says of `event`; nothing if it cannot happen now.
  void EnterLocked(MigrationEvent event, std::string message);
  void SetMessageLocked(std::string message);
  void SetMessage(std::string message);
  bool StopRequested() const;
  // Notes whether `status`, which a lane returned, means that the lane is lost.
  absl::Status FromLane(absl::Status status);

  // Who drives: one thread at a time may use what is marked so below.
  absl::Status AttachLane(SessionKey key, BulkLane* lane);
  void DetachLane();
  bool ClaimDriverLocked();
  void AbortUrgentLocked();

  // Before the commit, as driver.
  absl::Status RunBeforeCommit(BulkLane* lane);
  absl::Status RunRounds(BulkLane* lane);
  absl::Status StartTracking();
  absl::Status RunRound(BulkLane* lane);
  absl::Status SendUnsent(BulkLane* lane, const std::function<bool()>& stop);
  // Sends and counts a batch, compressed if both sides want it so.
  absl::Status SendPages(BulkLane* lane, PageBatch& batch);
  absl::Status AwaitRoundAck(BulkLane* lane);
  absl::Status TakeRoundAck(BulkLane* lane);
  void WaitBeforeNextRound(int64_t round_started_ns);
  // Asks for the switch-over if it is recommended and this is to decide.
  void SwitchIfDue();
  void PublishCounts();
  absl::Status SwitchOver(BulkLane* lane);
  // Has the destination discard what is dirty already, while the guest runs.
  absl::Status DiscardEarly(BulkLane* lane);
  absl::Status PauseGuest();
  absl::Status SendRest(BulkLane* lane);
  absl::Status SendStaleAndState(BulkLane* lane);
  absl::Status Commit(BulkLane* lane);
  // Waits for the destination to come back, and gives up if it does not.
  void AwaitReturn(uint64_t epoch, const absl::Status& lost);
  // Ends the migration before the commit and undoes it.
  void GiveUp(MigrationEvent event, std::string message);
  // Ends it as what happened demands: cancelled, VMM gone, or `error`.
  void GiveUpBecause(const absl::Status& error);

  // After the commit, as driver.
  absl::Status ServeFetches(BulkLane* lane);
  // Once, in the first session that lives to see the commit.
  absl::Status SendRecentlyDirtied(BulkLane* lane);
  absl::Status ServeFetch(BulkLane* lane, PageRun run);
  void NoteResumed(const GuestResumed& resumed);

  // Constant after construction.
  const RamLayout layout_;
  const SourceGuest guest_;
  const SourceOptions options_;
  Clock* const clock_;
  const uint64_t session_id_;

  // Used by the driver only.
  RateLimiter limiter_;
  // Both null once nothing is left to track.
  std::unique_ptr<DirtySource> dirty_source_;
  std::unique_ptr<PrecopyRounds> rounds_;
  SwitchOverAdvisor advisor_;
  RecentlyDirtied recently_dirtied_;
  SessionWishes lane_wishes_;
  PageBatch fetch_batch_;
  // Null if pages are not to be compressed.
  std::unique_ptr<RunCompressor> compressor_;
  bool tracking_ = false;
  bool guest_paused_ = false;
  bool lane_lost_ = false;
  uint32_t round_ = 0;
  int64_t precopy_nanos_ = 0;
  int64_t precopy_began_ns_ = -1;  // -1: not yet
  int64_t collected_ns_ = 0;       // when it was last looked what is dirty
  std::thread switcher_;
  int64_t pause_asked_ns_ = 0;
  int64_t vmm_nanos_ = 0;

  // Read by the urgent thread without the lock.
  std::atomic<bool> committed_{false};
  std::atomic<uint64_t> epoch_{0};
  std::atomic<uint64_t> faulted_{0};
  // Grows whenever a switch-over gets on.
  std::atomic<uint64_t> progress_{0};

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  // Guarded by mutex_.
  std::shared_ptr<const GuestMemory> memory_;
  SourceSnapshot snapshot_;
  PhaseHistory history_;
  uint64_t version_ = 0;
  BulkLane* lane_ = nullptr;
  bool driver_active_ = false;
  uint64_t attached_epoch_ = 0;
  SessionWishes wishes_;  // of the newest session
  // Who opened the first session; none has been if `opened_` is false.
  bool opened_ = false;
  std::string peer_;
  // Of the newest session.
  std::vector<UrgentStream*> urgent_streams_;
  bool switch_requested_ = false;
  bool cancel_requested_ = false;
  bool vmm_gone_ = false;
  bool destroying_ = false;
};

}  // namespace postcopy

#endif  // PAGESERVER_SOURCE_MIGRATION_H_
