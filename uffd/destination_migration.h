// One migration on the destination: from the first session until every page is
// here.
#ifndef UFFD_DESTINATION_MIGRATION_H_
#define UFFD_DESTINATION_MIGRATION_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/migration_phase.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "uffd/bulk_share.h"
#include "uffd/destination_vm.h"
#include "uffd/fault_times.h"
#include "uffd/policy_pull_order.h"
#include "uffd/source_connection.h"

namespace postcopy {

// Where a migration stands at the destination; dirtytrack/migration_phase.h has
// the table.
//
//   kPreparing --> kPrecopy --> kSwitching --> kPostcopy --> kCompleted
//                                    commit ^   |     ^
//                                               v     |
//                                          kPaused --> kRecovering
//
// From the first three also to kCancelled; from all to kFailed.
using DestinationPhase = MigrationPhase;

// Most bytes of device state taken from a source.
inline constexpr uint64_t kReceivedDeviceStateBytesMax = 64 << 20;

// Compressed runs in a row of which none could be decompressed, until the
// destination asks for plain ones: then it is not the network.
inline constexpr uint64_t kDamagedCompressedRunsMax = 8;

// What the destination asks of the VMM. Each may block; none is called with a
// lock held.
struct DestinationGuest {
  // May touch RAM, and so wait for pages.
  std::function<absl::Status(absl::string_view)> load_device_state;
  std::function<absl::Status()> resume;
  std::function<void(bool completed)> ended;
};

struct DestinationOptions {
  // What is asked for over the bulk lane, in bytes per second; 0: no limit.
  ByteCount bulk_limit_per_second;
  PullOrderKind pull_order = PullOrderKind::kAdaptive;
  // Whom it takes turns with after the switch-over; outlives the migration.
  // nullptr: nobody.
  BulkShare* bulk_share = nullptr;
  // How long a lost source may take to come back before the commit.
  int64_t reconnect_nanos = 10 * kNanosPerSecond;
  // Pause between two tries to reach it: doubled from the first to the last.
  int64_t retry_nanos_first = 20 * kNanosPerMilli;
  int64_t retry_nanos_last = kNanosPerSecond;
  // How long a source may take to end its streams when every page is here. One
  // that does not is left: it is told of the completion by a call of its own.
  int64_t lanes_end_nanos = 5 * kNanosPerSecond;
  // Told each change of phase or message, in order. With a lock held: must
  // neither block nor call the migration. May be empty.
  std::function<void(MigrationPhase phase, const std::string& message)>
      on_change;
};

struct DestinationSnapshot {
  MigrationPhase phase = DestinationPhase::kPreparing;
  std::string message;
  // When the phase began, by the monotonic clock.
  int64_t phase_since_ns = 0;
  // Paused because somebody asked for it.
  bool pause_requested = false;
  // Per second; 0: none.
  ByteCount bulk_limit;
  uint32_t rounds = 0;
  PageCount stale;
  uint64_t damaged_runs = 0;
  uint32_t recoveries = 0;
  DestinationCounters pages;
  LatencySnapshot fault_latency;
  FaultTimesSnapshot fault_times;
};

// The destination's half of one migration. The rules it keeps:
//
//  - Between telling the source that it is ready and hearing the source's
//    verdict it decides nothing by itself: the guest may be its own already.
//  - After the commit it never gives up by itself: a lost source is looked for
//    as long as it takes, while the threads of the guest that need a page wait.
//    Only Abandon ends that, and leaves poison, not zeros.
//  - Damaged pages are not stored; they are asked for again.
//
// A thread of its own drives it from Start to the end. Thread-safe.
class DestinationMigration {
 public:
  // `clock` outlives this.
  DestinationMigration(std::unique_ptr<DestinationVm> vm,
                       std::unique_ptr<SourceDialer> dialer,
                       DestinationGuest guest, DestinationOptions options,
                       Clock* clock);

  // As Stop().
  ~DestinationMigration();

  // Begins. To be called once. RESOURCE_EXHAUSTED if there is no memory for one
  // bit per page, or no thread; then nothing has begun.
  absl::Status Start();

  // Gives up. FAILED_PRECONDITION once the source may have handed the guest
  // over. OK if already cancelled.
  absl::Status Cancel();

  // Drops the connection, and dials no more until Recover. Returns when nothing
  // is connected. FAILED_PRECONDITION in a phase without a source to lose.
  absl::Status Pause();

  // Dials now, by `dialer` from now on unless it is null. FAILED_PRECONDITION
  // unless the source is lost or paused.
  absl::Status Recover(std::unique_ptr<SourceDialer> dialer);

  // Poisons what is missing and ends with kFailed; returns when that is done.
  // FAILED_PRECONDITION unless kPaused. UNIMPLEMENTED if the kernel cannot
  // poison: nothing has changed then, but that it is as after Pause.
  absl::Status Abandon();

  // Of the bulk lane, from now on, over all sessions; 0: none.
  // FAILED_PRECONDITION if the migration has ended.
  absl::Status SetBulkLimit(ByteCount per_second);

  // OK, or why a command is refused that a destination never carries out, or
  // kDelete.
  absl::Status Refuse(MigrationEvent command) const;

  // The VMM's connection ended.
  void VmmGone();

  // Ends all threads and leaves the VM as it is: registered, with waiting
  // threads waiting. For the daemon's own end.
  void Stop();
  // Begins it: Cancel, Pause and Abandon, if they wait, return soon. Does not
  // block.
  void AskToStop();

  MigrationPhase phase() const;
  DestinationSnapshot Snapshot() const;
  // The last changes of phase, oldest first.
  std::vector<PhaseChange> Changes() const;
  // As DestinationVm's.
  bool ShowsLife();
  // Counts changes of phase and message.
  uint64_t version() const;
  // Returns when version() differs from `seen`, or after `nanos`.
  void WaitForChange(uint64_t seen, int64_t nanos) const;

 private:
  // The driver thread.
  void Drive();
  absl::StatusOr<std::unique_ptr<SourceConnection>> Dial();
  // What Recover has brought, if anything.
  void TakeDialerLocked();
  // The token of the dial that begins now.
  std::stop_token NewDialLocked();
  // Ends the session, and the dial that may be going on for the next.
  void DisconnectLocked();
  absl::Status Serve(const std::shared_ptr<SourceConnection>& shared);
  absl::Status Begin(SourceConnection* connection);
  absl::Status ReceiveAll(SourceConnection* connection);
  // Returns what ended it.
  // Calls `begin` again and again while the host has no descriptor or thread
  // for it: the guest has been handed over, and nobody else can run it.
  absl::Status WhenThereIsRoom(const std::function<absl::Status()>& begin);
  absl::Status StartGuestThread();
  absl::Status ReceiveUrgent(SourceConnection* connection);
  // True if another session is worth a try; else the migration has ended.
  bool AfterLoss(const absl::Status& lost);
  // Waits until the source is to be dialled again: `nanos`, or for Recover.
  // Does what Abandon asks for meanwhile.
  void WaitToDial(int64_t nanos);
  void AbandonNow();
  // What the end demands. `connection` is the last one, or null.
  void Conclude(SourceConnection* connection);
  void Complete(SourceConnection* connection);
  // Lets go of the VM's memory, which would outlive its VMM otherwise.
  void ReleaseVm();

  // What arrives.
  absl::Status Handle(SourceConnection* connection, const BulkEvent& event);
  absl::Status Take(const PagesArrived& pages);
  // DATA_LOSS, and the next session has no compressed runs, if it must be.
  absl::Status SeeToCompression(const PagesArrived& pages);
  absl::Status Acknowledge(SourceConnection* connection, uint32_t round);
  absl::Status TakeDirtied(const PagesDirtied& dirtied);
  absl::Status TakeStale(const StalePiece& piece);
  absl::Status DiscardEarly(SourceConnection* connection, uint32_t round);
  absl::Status TakeDeviceState(absl::string_view data);
  absl::Status GetReady(SourceConnection* connection,
                        const SwitchOverComplete& complete);
  absl::Status TakeOver(SourceConnection* connection);

  // The guest thread: loads, resumes, then lets the background begin.
  void RunGuest();
  // Behind it, the same thread: waits for the end of the migration's streams.
  void SeeLanesEnd();
  void OnServingEnded(const absl::Status& status);

  // OK, or why the command is refused now.
  absl::Status PermitLocked(MigrationEvent command) const;
  // Does what the table says of `event`; nothing if it cannot happen now.
  void EnterLocked(MigrationEvent event, std::string message);
  void Enter(MigrationEvent event, std::string message);
  void SetMessageLocked(std::string message);
  // What Cancel says once the migration has ended.
  absl::Status CancelledLocked() const;
  bool CompleteLocked() const;
  bool StopWantedLocked() const;
  void EndIfComplete();
  // For a session with which the guest is, or becomes, this host's.
  absl::Status CheckSource(const SourceConnection& connection) const;
  void TellResumed();
  // Ends with an error after which nothing can be done here.
  void Fail(MigrationEvent event, std::string message);

  // Constant after construction.
  const DestinationGuest guest_;
  const DestinationOptions options_;
  Clock* const clock_;

  // Used by the driver thread only.
  std::unique_ptr<SourceDialer> dialer_;
  uint64_t epoch_ = 0;
  uint64_t dialled_after_pauses_ = 0;  // the last dial
  uint64_t source_id_ = 0;             // of the last session before the commit
  PageBitmap stale_;
  std::string device_state_;  // by the guest thread after the commit
  uint64_t damaged_in_round_ = 0;
  uint64_t damaged_compressed_ = 0;  // in a row
  bool compression_forgone_ = false;
  int64_t lost_since_ns_ = 0;

  std::thread driver_;
  std::thread guest_thread_;

  // Poisoning is to end: the VMM or the daemon does.
  std::atomic<bool> stop_poisoning_{false};

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  // Reset, with the mutex held, by the driver when it is done; before that used
  // without.
  std::unique_ptr<DestinationVm> vm_;
  // Guarded by mutex_.
  DestinationSnapshot snapshot_;  // what vm_ counted, once it is gone
  PhaseHistory history_;
  uint64_t version_ = 0;
  std::unique_ptr<SourceDialer> next_dialer_;  // null: none
  std::stop_source dial_;                      // of the last dial
  ByteCount bulk_limit_;
  bool held_ = false;      // by Pause: not dialling
  uint64_t pauses_ = 0;    // that were asked for
  bool dial_now_ = false;  // Recover was called
  bool abandon_requested_ = false;
  bool abandoned_ = false;
  absl::Status abandon_status_;
  std::shared_ptr<SourceConnection> connection_;
  bool ready_ = false;      // the source may commit
  bool committed_ = false;  // it has
  bool resumed_told_ = false;
  int64_t resume_nanos_ = -1;  // -1: the guest does not run yet
  bool all_resident_ = false;
  bool guest_settled_ = false;  // it runs, and the background has begun
  bool guest_thread_active_ = false;
  bool cancel_requested_ = false;
  bool vmm_gone_ = false;
  bool stopping_ = false;
};

}  // namespace postcopy

#endif  // UFFD_DESTINATION_MIGRATION_H_
