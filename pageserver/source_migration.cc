#include "pageserver/source_migration.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {
namespace {

// How often a thread that waits for another looks up, so that a stalled
// switch-over is noticed.
constexpr std::chrono::milliseconds kWatchInterval(50);

// How long a stream that has been aborted may take to end. It may be in the
// middle of a command to the VMM.
constexpr std::chrono::seconds kDetachTimeout(20);

absl::Status UnexpectedMessage(absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("the destination sent something else where ", expected,
                   " was due: it does not follow the protocol"));
}

// The next message, which must be a T.
template <typename T>
absl::StatusOr<T> Expect(BulkLane* lane, absl::string_view what) {
  absl::StatusOr<BulkMessage> message = lane->Receive();
  if (!message.ok()) return message.status();
  if (!std::holds_alternative<T>(*message)) return UnexpectedMessage(what);
  return std::get<T>(*message);
}

}  // namespace

int64_t DeadlineNanos(PageCount ram, int64_t nanos_per_gib) {
  constexpr uint64_t kGib = uint64_t{1} << 30;
  return static_cast<int64_t>((BytesIn(ram).value() + kGib - 1) / kGib) *
         nanos_per_gib;
}

absl::StatusOr<std::unique_ptr<SourceMigration>> SourceMigration::Create(
    std::unique_ptr<GuestMemory> memory,
    std::unique_ptr<DirtySource> dirty_source, SourceGuest guest,
    SourceOptions options, Clock* clock) {
  std::unique_ptr<SourceMigration> migration(
      new SourceMigration(std::move(memory), std::move(dirty_source),
                          std::move(guest), options, clock));
  absl::StatusOr<std::unique_ptr<PrecopyRounds>> rounds = PrecopyRounds::Create(
      migration->memory_.get(), migration->dirty_source_.get(),
      &migration->limiter_);
  if (!rounds.ok()) return rounds.status();
  migration->rounds_ = *std::move(rounds);
  if (options.compress) {
    absl::StatusOr<std::unique_ptr<RunCompressor>> compressor =
        RunCompressor::Create();
    if (!compressor.ok()) return compressor.status();
    migration->compressor_ = *std::move(compressor);
  }
  return migration;
}

SourceMigration::SourceMigration(std::unique_ptr<GuestMemory> memory,
                                 std::unique_ptr<DirtySource> dirty_source,
                                 SourceGuest guest, SourceOptions options,
                                 Clock* clock)
    : layout_(memory->layout()),
      guest_(std::move(guest)),
      options_(options),
      clock_(clock),
      session_id_(RandomSessionId()),
      limiter_(clock, options.bulk_limit_per_second),
      dirty_source_(std::move(dirty_source)),
      advisor_({.policy = options.policy,
                .rounds_max = options.rounds_max,
                .total = layout_.pages(),
                .deadline_nanos = DeadlineNanos(
                    layout_.pages(), options.deadline_nanos_per_gib)}),
      memory_(std::move(memory)) {
  snapshot_.phase_since_ns = clock->NowNanos();
  snapshot_.total = layout_.pages();
  snapshot_.remaining = layout_.pages();
  snapshot_.advice = advisor_.advice();
  snapshot_.estimate =
      advisor_.EstimateFor(layout_.pages(), options.bulk_limit_per_second);
  snapshot_.message = "waiting for the destination to open a session";
  history_.Add(snapshot_.phase, snapshot_.phase_since_ns, snapshot_.message);
}

SourceMigration::~SourceMigration() {
  {
    std::lock_guard lock(mutex_);
    destroying_ = true;
    changed_.notify_all();
  }
  if (switcher_.joinable()) switcher_.join();
}

// --- Sessions.

absl::Status SourceMigration::CheckEpoch(SessionKey key) const {
  if (key.id != session_id_) {
    return absl::NotFoundError("no such session: open one");
  }
  const uint64_t newest = epoch_.load(std::memory_order_acquire);
  if (key.epoch != newest) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", key.epoch, " is not the newest, which is ",
                     newest, ": another session has taken over"));
  }
  return absl::OkStatus();
}

absl::Status SourceMigration::CheckPeerLocked(absl::string_view peer) const {
  if (!opened_ || peer == peer_) return absl::OkStatus();
  return absl::PermissionDeniedError(
      "the session is another peer's, who opened it first: a migration has one "
      "destination to its end, so cancel it and create another to move the VM "
      "elsewhere");
}

absl::Status SourceMigration::CheckPeer(absl::string_view peer) const {
  std::lock_guard lock(mutex_);
  return CheckPeerLocked(peer);
}

absl::StatusOr<SessionKey> SourceMigration::OpenSession(
    uint64_t epoch, const RamLayout& destination, SessionWishes wishes,
    absl::string_view peer) {
  std::lock_guard lock(mutex_);
  // First: what else is wrong is nobody else's business.
  if (absl::Status s = CheckPeerLocked(peer); !s.ok()) return s;
  if (absl::Status s = layout_.Matches(destination); !s.ok()) return s;
  if (HasEnded(snapshot_.phase)) {
    return absl::AbortedError(
        absl::StrCat("the migration has ended: ", snapshot_.message));
  }
  const uint64_t newest = epoch_.load(std::memory_order_relaxed);
  if (epoch < newest || epoch <= attached_epoch_) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", epoch, " is not higher than ",
                     std::max(newest, attached_epoch_),
                     ", which is taken: open the session with a higher one"));
  }
  epoch_.store(epoch, std::memory_order_release);
  // Silent ones would stay, and take threads that others need.
  if (epoch != newest) AbortUrgentLocked();
  wishes_ = wishes;
  opened_ = true;
  peer_ = std::string(peer);
  if (lane_ != nullptr) lane_->Abort();
  return SessionKey{session_id_, epoch};
}

absl::StatusOr<std::shared_ptr<const GuestMemory>>
SourceMigration::AttachUrgent(SessionKey key, UrgentStream* stream) {
  std::lock_guard lock(mutex_);
  // With the lock, so that no older one comes behind a newer one.
  if (absl::Status s = CheckEpoch(key); !s.ok()) return s;
  if (memory_ == nullptr) {
    return absl::AbortedError(
        absl::StrCat("the migration has ended: ", snapshot_.message));
  }
  if (urgent_streams_.size() == kUrgentStreamsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the session has ", kUrgentStreamsMax,
                     " urgent streams already: end one of them"));
  }
  urgent_streams_.push_back(stream);
  return memory_;
}

void SourceMigration::DetachUrgent(UrgentStream* stream) {
  std::lock_guard lock(mutex_);
  // One that has been aborted is not there any more.
  urgent_streams_.erase(
      std::remove(urgent_streams_.begin(), urgent_streams_.end(), stream),
      urgent_streams_.end());
}

void SourceMigration::AbortUrgentLocked() {
  for (UrgentStream* stream : urgent_streams_) stream->Abort();
  urgent_streams_.clear();
}

void SourceMigration::EndStreams() {
  std::lock_guard lock(mutex_);
  AbortUrgentLocked();
  if (lane_ != nullptr) lane_->Abort();
}

SessionWishes SourceMigration::wishes() const {
  std::lock_guard lock(mutex_);
  return wishes_;
}

absl::Status SourceMigration::ReadUrgent(SessionKey key,
                                         const GuestMemory& memory,
                                         absl::Span<const PageIndex> pages,
                                         PageBatch& batch) {
  batch.Clear();
  if (absl::Status s = CheckEpoch(key); !s.ok()) return s;
  if (!committed()) {
    return absl::FailedPreconditionError(
        "the guest has not been handed over yet: its pages still change");
  }
  if (absl::Status s = ReadAsked(memory, pages, batch); !s.ok()) return s;
  faulted_.fetch_add(pages.size(), std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status SourceMigration::Complete(SessionKey key) {
  if (absl::Status s = CheckEpoch(key); !s.ok()) return s;
  // Let go without the lock: the last descriptor of large RAM takes time.
  std::shared_ptr<const GuestMemory> memory;
  {
    std::lock_guard lock(mutex_);
    if (snapshot_.phase == SourcePhase::kCompleted) return absl::OkStatus();
    if (!committed()) {
      return absl::FailedPreconditionError(
          "the guest has not been handed over yet: nothing is complete");
    }
    EnterLocked(MigrationEvent::kCompleted, "every page is at the destination");
    memory = std::move(memory_);
  }
  guest_.ended(/*completed=*/true);
  return absl::OkStatus();
}

// --- Who drives.

bool SourceMigration::ClaimDriverLocked() {
  if (driver_active_) return false;
  driver_active_ = true;
  return true;
}

absl::Status SourceMigration::AttachLane(SessionKey key, BulkLane* lane) {
  std::unique_lock lock(mutex_);
  // Of this session there is one: that will not change, so nobody waits.
  const auto taken = [&] {
    return key.id == session_id_ && attached_epoch_ == key.epoch;
  };
  // The stream of the epoch before has been aborted and is on its way out.
  const bool free = changed_.wait_for(
      lock, kDetachTimeout, [&] { return !driver_active_ || taken(); });
  if (!free) {
    return absl::UnavailableError(
        "the stream of the session before has not ended: try again");
  }
  if (absl::Status s = CheckEpoch(key); !s.ok()) return s;
  if (HasEnded(snapshot_.phase)) {
    return absl::AbortedError(
        absl::StrCat("the migration has ended: ", snapshot_.message));
  }
  if (taken()) {
    return absl::FailedPreconditionError(
        "the session has a bulk stream already: open a new session");
  }
  if (attached_epoch_ != 0) ++snapshot_.recoveries;
  attached_epoch_ = key.epoch;
  lane_wishes_ = wishes_;
  driver_active_ = true;
  lane_lost_ = false;
  lane_ = lane;
  return absl::OkStatus();
}

void SourceMigration::DetachLane() {
  std::lock_guard lock(mutex_);
  lane_ = nullptr;
  driver_active_ = false;
  changed_.notify_all();
}

absl::Status SourceMigration::FromLane(absl::Status status) {
  if (absl::IsUnavailable(status) || absl::IsCancelled(status)) {
    lane_lost_ = true;
  }
  return status;
}

absl::Status SourceMigration::ServeBulk(SessionKey key, BulkLane* lane) {
  if (absl::Status s = AttachLane(key, lane); !s.ok()) return s;
  if (committed()) SetMessage("the guest runs at the destination");
  const absl::Status status =
      committed() ? ServeFetches(lane) : RunBeforeCommit(lane);
  const bool await_return = !committed() && lane_lost_;
  if (committed() && !status.ok()) {
    SetMessage("the guest runs at the destination, which is not connected");
  }
  DetachLane();
  if (await_return) AwaitReturn(key.epoch, status);
  return status;
}

// --- Before the commit.

bool SourceMigration::StopRequested() const {
  std::lock_guard lock(mutex_);
  return switch_requested_ || cancel_requested_ || vmm_gone_;
}

absl::Status SourceMigration::RunBeforeCommit(BulkLane* lane) {
  absl::Status status = RunRounds(lane);
  if (status.ok()) status = SwitchOver(lane);
  if (status.ok()) return ServeFetches(lane);
  if (committed()) return status;
  if (rounds_ != nullptr) rounds_->TakeBack();
  bool stop = false;
  {
    std::lock_guard lock(mutex_);
    stop = cancel_requested_ || vmm_gone_ ||
           snapshot_.phase == SourcePhase::kSwitching;
  }
  // A stream that breaks between rounds may be replaced by another.
  if (stop || !lane_lost_) {
    lane_lost_ = false;
    GiveUpBecause(status);
  }
  return status;
}

absl::Status SourceMigration::StartTracking() {
  if (tracking_ || options_.policy == MigrationPolicy::kPostcopyOnly) {
    return absl::OkStatus();
  }
  if (absl::Status s = rounds_->Start(); !s.ok()) return s;
  tracking_ = true;
  collected_ns_ = clock_->NowNanos();
  return absl::OkStatus();
}

absl::Status SourceMigration::RunRounds(BulkLane* lane) {
  if (absl::Status s = StartTracking(); !s.ok()) return s;
  {
    std::lock_guard lock(mutex_);
    EnterLocked(MigrationEvent::kSession, "");
  }
  if (precopy_began_ns_ < 0) precopy_began_ns_ = clock_->NowNanos();
  while (!StopRequested()) {
    const int64_t started = clock_->NowNanos();
    // Without rounds, an empty one tells whether the destination is there.
    const absl::Status status =
        options_.policy == MigrationPolicy::kPostcopyOnly ? AwaitRoundAck(lane)
                                                          : RunRound(lane);
    if (!status.ok()) return status;
    PublishCounts();
    SwitchIfDue();
    WaitBeforeNextRound(started);
  }
  std::lock_guard lock(mutex_);
  if (cancel_requested_ || vmm_gone_) return absl::AbortedError("stopped");
  return absl::OkStatus();
}

absl::Status SourceMigration::SendUnsent(BulkLane* lane,
                                         const std::function<bool()>& stop) {
  return rounds_->SendUnsent(
      [&](PageBatch& batch) {
        absl::Status status = SendPages(lane, batch);
        progress_.fetch_add(1, std::memory_order_relaxed);
        PublishCounts();
        return status;
      },
      stop);
}

absl::Status SourceMigration::SendPages(BulkLane* lane, PageBatch& batch) {
  if (compressor_ != nullptr && lane_wishes_.compressed_runs) {
    batch.Compress(*compressor_);
  }
  if (absl::Status s = FromLane(lane->SendPages(batch)); !s.ok()) return s;
  std::lock_guard lock(mutex_);
  snapshot_.bulk_page_bytes += BytesIn(batch.data_pages());
  snapshot_.bulk_sent_bytes += batch.sent_bytes();
  return absl::OkStatus();
}

void SourceMigration::PublishCounts() {
  advisor_.AddTime(clock_->NowNanos() - precopy_began_ns_);
  std::lock_guard lock(mutex_);
  snapshot_.estimate =
      advisor_.EstimateFor(rounds_->remaining(), limiter_.limit());
  if (advisor_.advice().recommended && !snapshot_.advice.recommended) {
    snapshot_.advice = advisor_.advice();
    ++version_;
    changed_.notify_all();
  }
  snapshot_.zero = rounds_->zero_pages();
  snapshot_.precopied = rounds_->sent_pages();
  snapshot_.remaining = rounds_->remaining();
  snapshot_.rounds = round_;
}

absl::Status SourceMigration::AwaitRoundAck(BulkLane* lane) {
  const int64_t asked = clock_->NowNanos();
  if (absl::Status s = FromLane(lane->SendRoundEnd(round_)); !s.ok()) return s;
  absl::Status status = TakeRoundAck(lane);
  if (status.ok()) advisor_.AddAck(clock_->NowNanos() - asked);
  return status;
}

absl::Status SourceMigration::TakeRoundAck(BulkLane* lane) {
  absl::StatusOr<RoundAck> ack = Expect<RoundAck>(lane, "RoundAck");
  if (!ack.ok()) return FromLane(ack.status());
  if (ack->round != round_) return UnexpectedMessage("the RoundAck of now");
  progress_.fetch_add(1, std::memory_order_relaxed);
  if (ack->damaged_runs == 0) {
    rounds_->Acknowledge();
    return absl::OkStatus();
  }
  // Which runs were damaged the destination cannot know for sure, the offsets
  // being part of what may be wrong. So all are sent again.
  rounds_->TakeBack();
  std::lock_guard lock(mutex_);
  snapshot_.damaged_runs += ack->damaged_runs;
  return absl::OkStatus();
}

absl::Status SourceMigration::RunRound(BulkLane* lane) {
  const int64_t started = clock_->NowNanos();
  const PageCount data_before = rounds_->data_pages();
  ++round_;
  absl::Status status = SendUnsent(lane, [&] {
    advisor_.AddPart(BytesIn(rounds_->data_pages() - data_before),
                     clock_->NowNanos() - started);
    SwitchIfDue();
    return StopRequested();
  });
  if (!status.ok()) return status;
  if (status = AwaitRoundAck(lane); !status.ok()) return status;
  const int64_t nanos = clock_->NowNanos() - started;
  const bool whole = !StopRequested();
  if (status = rounds_->Collect(); !status.ok()) return status;
  const int64_t looked = std::exchange(collected_ns_, clock_->NowNanos());

  precopy_nanos_ += nanos;
  if (whole) {
    advisor_.AddRound({.round = round_,
                       .sent = BytesIn(rounds_->data_pages() - data_before),
                       .nanos = nanos,
                       .dirty_after = rounds_->remaining(),
                       .dirty_nanos = collected_ns_ - looked});
  }
  std::lock_guard lock(mutex_);
  // Who watches hears of every round, and so of the advice at once.
  ++version_;
  changed_.notify_all();
  snapshot_.advice = advisor_.advice();
  snapshot_.precopy_bytes_per_second = static_cast<uint64_t>(
      static_cast<__uint128_t>(BytesIn(rounds_->data_pages()).value()) *
      kNanosPerSecond / std::max<int64_t>(precopy_nanos_, 1));
  return absl::OkStatus();
}

void SourceMigration::WaitBeforeNextRound(int64_t round_started_ns) {
  const int64_t left =
      options_.round_nanos_min - (clock_->NowNanos() - round_started_ns);
  if (left <= 0) return;
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::nanoseconds(left), [this] {
    return switch_requested_ || cancel_requested_ || vmm_gone_;
  });
}

void SourceMigration::SwitchIfDue() {
  if (!options_.switch_by_itself || !advisor_.advice().recommended ||
      switcher_.joinable()) {
    return;
  }
  // It sees to a destination that gets on no more, as whoever asks for a
  // switch-over does. Without it, the guest runs on until there is a thread.
  absl::StatusOr<std::thread> switcher =
      StartThread([this] { RequestSwitchOver().IgnoreError(); });
  if (!switcher.ok()) return;
  switcher_ = *std::move(switcher);
  std::lock_guard lock(mutex_);
  snapshot_.advice = advisor_.advice();
  switch_requested_ = true;
}

// --- The switch-over.

absl::Status SourceMigration::PauseGuest() {
  pause_asked_ns_ = clock_->NowNanos();
  // Even a pause that fails may have stopped some vCPUs.
  guest_paused_ = true;
  if (absl::Status s = guest_.pause(); !s.ok()) return s;
  vmm_nanos_ = clock_->NowNanos() - pause_asked_ns_;
  progress_.fetch_add(1, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status SourceMigration::SendRest(BulkLane* lane) {
  if (options_.policy != MigrationPolicy::kPrecopyOnly) {
    return rounds_->CollectRecent();
  }
  if (absl::Status s = rounds_->Collect(); !s.ok()) return s;
  const auto cancelled = [this] {
    std::lock_guard lock(mutex_);
    return cancel_requested_ || vmm_gone_;
  };
  for (int i = 0; !rounds_->remaining().empty() && !cancelled(); ++i) {
    if (i == kRestRoundsMax) {
      return absl::DataLossError(
          absl::StrCat("with the guest stopped, pages arrived damaged ",
                       kRestRoundsMax, " times running: check the network"));
    }
    ++round_;
    if (absl::Status s = SendUnsent(lane, cancelled); !s.ok()) return s;
    if (absl::Status s = AwaitRoundAck(lane); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status SourceMigration::SendStaleAndState(BulkLane* lane) {
  const int64_t save_asked = clock_->NowNanos();
  absl::StatusOr<std::string> state = guest_.save_device_state();
  if (!state.ok()) return state.status();
  vmm_nanos_ += clock_->NowNanos() - save_asked;
  // Only now: a VMM may write RAM while it saves (a device flushes a ring).
  if (absl::Status s = SendRest(lane); !s.ok()) return s;

  const PageCount stale = rounds_->remaining();
  {
    std::lock_guard lock(mutex_);
    snapshot_.stale = stale;
  }
  absl::Status status = FromLane(lane->SendStale(rounds_->unsent()));
  if (!status.ok()) return status;
  progress_.fetch_add(1, std::memory_order_relaxed);
  return FromLane(lane->SendSwitchOver(stale, *state));
}

absl::Status SourceMigration::Commit(BulkLane* lane) {
  absl::StatusOr<SwitchOverReady> ready =
      Expect<SwitchOverReady>(lane, "SwitchOverReady");
  if (!ready.ok()) return FromLane(ready.status());
  std::lock_guard lock(mutex_);
  if (cancel_requested_) return absl::AbortedError("stopped");
  // A session that was opened meanwhile has been told that nothing is
  // committed, and nobody reads the Commit of this one any more.
  if (epoch_.load(std::memory_order_relaxed) != attached_epoch_) {
    return absl::AbortedError("the destination opened another session");
  }
  snapshot_.discarded = ready->discarded;
  snapshot_.remaining = snapshot_.stale;
  committed_.store(true, std::memory_order_release);
  if (guest_.handed_over != nullptr) guest_.handed_over();
  EnterLocked(MigrationEvent::kCommit, "the guest belongs to the destination");
  return absl::OkStatus();
}

absl::Status SourceMigration::DiscardEarly(BulkLane* lane) {
  // The other policies have nothing stale, or nothing that was sent before.
  if (options_.policy != MigrationPolicy::kPrecopyThenPostcopy) {
    return absl::OkStatus();
  }
  for (int i = 0; i < kEarlyDiscards; ++i) {
    if (absl::Status s = rounds_->CollectRecent(); !s.ok()) return s;
    absl::Status status = FromLane(lane->SendStale(rounds_->unsent()));
    if (status.ok()) status = FromLane(lane->SendEarlyDiscard(round_));
    // While the destination discards.
    recently_dirtied_.Add(rounds_->recent());
    if (status.ok()) status = TakeRoundAck(lane);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status SourceMigration::SwitchOver(BulkLane* lane) {
  // Everything sent has been acknowledged or taken back: RunRounds has seen to
  // it while the guest ran, so that its pause does not wait for what is on its
  // way.
  if (absl::Status s = DiscardEarly(lane); !s.ok()) return s;
  {
    std::lock_guard lock(mutex_);
    EnterLocked(MigrationEvent::kSwitch,
                switcher_.joinable()
                    ? absl::StrCat("by itself: ", snapshot_.advice.reason)
                    : "");
  }
  if (absl::Status s = PauseGuest(); !s.ok()) return s;
  if (absl::Status s = SendStaleAndState(lane); !s.ok()) return s;
  if (absl::Status s = Commit(lane); !s.ok()) return s;
  const absl::Status sent = FromLane(lane->SendCommit());
  // Behind it: what only helps to put pages in order must not stop the guest.
  if (options_.policy == MigrationPolicy::kPrecopyThenPostcopy) {
    recently_dirtied_.Add(rounds_->recent());
  }
  rounds_.reset();
  dirty_source_.reset();
  return sent;
}

// --- Giving up.

void SourceMigration::AwaitReturn(uint64_t epoch, const absl::Status& lost) {
  std::unique_lock lock(mutex_);
  const auto decided = [&] {
    return attached_epoch_ > epoch || cancel_requested_ || vmm_gone_ ||
           HasEnded(snapshot_.phase);
  };
  if (!decided()) {
    SetMessageLocked(absl::StrCat("the destination is lost, waiting for it: ",
                                  lost.message()));
  }
  changed_.wait_for(lock, std::chrono::nanoseconds(options_.reconnect_nanos),
                    decided);
  if (attached_epoch_ > epoch || HasEnded(snapshot_.phase)) return;
  if (!ClaimDriverLocked()) return;
  const bool stop = cancel_requested_ || vmm_gone_;
  lock.unlock();
  if (stop) {
    // Whoever asked for it did so while the broken lane's driver was still on
    // its way out, and waits for somebody to act.
    GiveUpBecause(lost);
    return DetachLane();
  }
  GiveUp(MigrationEvent::kGivenUp,
         absl::StrCat("the destination was lost during precopy and did not "
                      "come back; the guest goes on at the source: ",
                      lost.message()));
  DetachLane();
}

void SourceMigration::GiveUpBecause(const absl::Status& error) {
  bool cancelled = false;
  bool vmm_gone = false;
  {
    std::lock_guard lock(mutex_);
    cancelled = cancel_requested_;
    vmm_gone = vmm_gone_;
  }
  if (vmm_gone) {
    GiveUp(MigrationEvent::kVmmGone, "the VMM closed its connection");
  } else if (cancelled) {
    GiveUp(MigrationEvent::kCancel,
           "cancelled by request; the guest goes on at the source");
  } else {
    GiveUp(MigrationEvent::kGivenUp,
           absl::StrCat("given up; the guest goes on at the source: ",
                        error.message()));
  }
}

void SourceMigration::GiveUp(MigrationEvent event, std::string message) {
  if (guest_paused_) {
    if (absl::Status s = guest_.resume(); !s.ok()) {
      event = MigrationEvent::kBroken;
      absl::StrAppend(&message,
                      "; the guest could not be resumed: ", s.message());
    }
    guest_paused_ = false;
  }
  if (tracking_) {
    if (absl::Status s = rounds_->Abort(); !s.ok()) {
      absl::StrAppend(
          &message, "; dirty tracking was not stopped cleanly: ", s.message());
    }
    tracking_ = false;
  }
  rounds_.reset();
  dirty_source_.reset();
  guest_.ended(/*completed=*/false);
  std::shared_ptr<const GuestMemory> memory;
  std::lock_guard lock(mutex_);
  memory = std::move(memory_);
  EnterLocked(event, std::move(message));
}

// --- After the commit.

absl::Status SourceMigration::ServeFetches(BulkLane* lane) {
  if (absl::Status s = SendRecentlyDirtied(lane); !s.ok()) return s;
  // A destination that lost the connection around the commit is told again,
  // by OpenSessionResponse; one that came back only fetches.
  while (true) {
    absl::StatusOr<BulkMessage> message = lane->Receive();
    if (!message.ok()) return FromLane(message.status());
    absl::Status status;
    if (const auto* fetch = std::get_if<FetchRange>(&*message)) {
      status = ServeFetch(lane, fetch->pages);
    } else if (const auto* resumed = std::get_if<GuestResumed>(&*message)) {
      NoteResumed(*resumed);
    } else {
      status = UnexpectedMessage("FetchRange");
    }
    if (!status.ok()) return status;
  }
}

absl::Status SourceMigration::SendRecentlyDirtied(BulkLane* lane) {
  const RecentlyDirtied dirtied = std::exchange(recently_dirtied_, {});
  if (!lane_wishes_.recently_dirtied) return absl::OkStatus();
  absl::Span<const PageRun> rest = dirtied.runs();
  while (!rest.empty()) {
    const auto some = rest.subspan(0, kDirtiedRunsPerMessageMax);
    absl::Status status = FromLane(lane->SendRecentlyDirtied(some));
    if (!status.ok()) return status;
    rest.remove_prefix(some.size());
  }
  return absl::OkStatus();
}

absl::Status SourceMigration::ServeFetch(BulkLane* lane, PageRun run) {
  if (absl::Status s = CheckFetch(layout_, run); !s.ok()) return s;
  std::shared_ptr<const GuestMemory> memory;
  {
    std::lock_guard lock(mutex_);
    memory = memory_;
    snapshot_.background += run.count;
  }
  if (memory == nullptr) return absl::AbortedError("the migration has ended");
  fetch_batch_.Clear();
  if (absl::Status s = fetch_batch_.AddFrom(*memory, run); !s.ok()) return s;
  if (absl::Status s = SendPages(lane, fetch_batch_); !s.ok()) return s;
  limiter_.Pace(fetch_batch_.sent_bytes());
  return absl::OkStatus();
}

void SourceMigration::NoteResumed(const GuestResumed& resumed) {
  const int64_t downtime = clock_->NowNanos() - pause_asked_ns_;
  std::lock_guard lock(mutex_);
  if (snapshot_.downtime_nanos != 0 || HasEnded(snapshot_.phase)) return;
  snapshot_.downtime_nanos = downtime;
  snapshot_.added_downtime_nanos =
      std::max<int64_t>(downtime - vmm_nanos_ - resumed.vmm_nanos, 0);
  SetMessageLocked("the guest runs at the destination");
}

// --- The control plane.

int64_t SourceMigration::PatienceLocked() const {
  // A guest that is stopped has less of it than one that runs.
  const int64_t patience =
      snapshot_.phase == SourcePhase::kSwitching
          ? options_.switch_stall_nanos
          : std::max(options_.reconnect_nanos, options_.switch_stall_nanos);
  // At most kMaxRamBytes of pages: no overflow.
  return patience + static_cast<int64_t>(snapshot_.remaining.value()) *
                        kDiscardNanosPerPage;
}

absl::Status SourceMigration::RequestSwitchOver() {
  std::unique_lock lock(mutex_);
  if (committed()) return absl::OkStatus();
  absl::Status permitted = PermitLocked(MigrationEvent::kSwitchOver);
  if (!permitted.ok()) return permitted;
  switch_requested_ = true;
  changed_.notify_all();
  uint64_t progress = progress_.load(std::memory_order_relaxed);
  uint64_t epoch = attached_epoch_;
  SourcePhase phase = snapshot_.phase;
  int64_t progress_ns = clock_->NowNanos();
  while (!committed() && !HasEnded(snapshot_.phase) && !destroying_) {
    changed_.wait_for(lock, kWatchInterval);
    // Once it is decided, the stream is no business of this loop.
    if (committed() || HasEnded(snapshot_.phase)) break;
    const uint64_t now_at = progress_.load(std::memory_order_relaxed);
    // A new session, or the pause, begins with all of it.
    if (now_at != progress || attached_epoch_ != epoch ||
        snapshot_.phase != phase) {
      progress = now_at;
      epoch = attached_epoch_;
      phase = snapshot_.phase;
      progress_ns = clock_->NowNanos();
    } else if (clock_->NowNanos() - progress_ns > PatienceLocked() &&
               lane_ != nullptr) {
      lane_->Abort();
    }
  }
  if (committed()) return absl::OkStatus();
  return absl::AbortedError(snapshot_.message);
}

absl::Status SourceMigration::Cancel() {
  std::unique_lock lock(mutex_);
  absl::Status permitted = PermitLocked(MigrationEvent::kCancel);
  if (!permitted.ok()) return permitted;
  cancel_requested_ = true;
  if (lane_ != nullptr) lane_->Abort();
  changed_.notify_all();
  if (!HasEnded(snapshot_.phase) && ClaimDriverLocked()) {
    lock.unlock();
    GiveUpBecause(absl::OkStatus());
    DetachLane();
    lock.lock();
  }
  changed_.wait(lock,
                [this] { return committed() || HasEnded(snapshot_.phase); });
  return snapshot_.phase == SourcePhase::kFailed
             ? PermitLocked(MigrationEvent::kCancel)
             : absl::OkStatus();
}

absl::Status SourceMigration::Refuse(MigrationEvent command) const {
  std::lock_guard lock(mutex_);
  return PermitLocked(command);
}

absl::Status SourceMigration::SetBulkLimit(ByteCount per_second) {
  std::lock_guard lock(mutex_);
  absl::Status permitted = PermitLocked(MigrationEvent::kSetLimits);
  if (permitted.ok()) limiter_.SetLimit(per_second);
  return permitted;
}

void SourceMigration::VmmGone() {
  std::unique_lock lock(mutex_);
  vmm_gone_ = true;
  if (HasEnded(snapshot_.phase)) return;
  // After the commit nothing but the VMM's memory is needed, and that is held.
  if (committed()) return;
  if (lane_ != nullptr) lane_->Abort();
  changed_.notify_all();
  if (!ClaimDriverLocked()) return;
  lock.unlock();
  GiveUpBecause(absl::OkStatus());
  DetachLane();
}

// --- What others may know.

absl::Status SourceMigration::PermitLocked(MigrationEvent command) const {
  return Permit(MigrationRole::kSource, snapshot_.phase, command,
                snapshot_.message);
}

void SourceMigration::EnterLocked(MigrationEvent event, std::string message) {
  const Reaction reaction =
      ReactionOf(MigrationRole::kSource, snapshot_.phase, event);
  if (reaction.kind == Reaction::Kind::kImpossible) return;
  const SourcePhase to =
      reaction.kind == Reaction::Kind::kGoes ? reaction.to : snapshot_.phase;
  if (to != snapshot_.phase) {
    snapshot_.phase = to;
    snapshot_.phase_since_ns = clock_->NowNanos();
    history_.Add(to, snapshot_.phase_since_ns, message);
  }
  SetMessageLocked(std::move(message));
}

void SourceMigration::SetMessageLocked(std::string message) {
  snapshot_.message = std::move(message);
  ++version_;
  if (options_.on_change) {
    options_.on_change(snapshot_.phase, snapshot_.message);
  }
  changed_.notify_all();
}

void SourceMigration::SetMessage(std::string message) {
  std::lock_guard lock(mutex_);
  if (HasEnded(snapshot_.phase)) return;
  SetMessageLocked(std::move(message));
}

SourcePhase SourceMigration::phase() const {
  std::lock_guard lock(mutex_);
  return snapshot_.phase;
}

std::vector<PhaseChange> SourceMigration::Changes() const {
  std::lock_guard lock(mutex_);
  return history_.changes();
}

SourceSnapshot SourceMigration::Snapshot() const {
  std::lock_guard lock(mutex_);
  SourceSnapshot snapshot = snapshot_;
  snapshot.bulk_limit = limiter_.limit();
  snapshot.faulted = PageCount(faulted_.load(std::memory_order_relaxed));
  return snapshot;
}

uint64_t SourceMigration::version() const {
  std::lock_guard lock(mutex_);
  return version_;
}

void SourceMigration::WaitForChange(uint64_t seen, int64_t nanos) const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::nanoseconds(nanos),
                    [&] { return version_ != seen; });
}

}  // namespace postcopy
