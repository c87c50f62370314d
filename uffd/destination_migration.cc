#include "uffd/destination_migration.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/start_thread.h"
#include "uffd/huge_page_connection.h"
#include "uffd/redial_pause.h"

namespace postcopy {
namespace {

// Between two tries to begin what the host has no room for.
constexpr std::chrono::milliseconds kRoomPause(50);

// Errors that another session may mend.
bool WorthAnotherTry(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsCancelled(status) ||
         absl::IsDeadlineExceeded(status) || absl::IsDataLoss(status);
}

// Times a source that cannot be reached is told of the end of a guest that is
// gone itself.
constexpr int kTriesAfterVmmMax = 20;

// What only the source says, and only when the guest stays its own.
bool SourceHasGivenUp(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsNotFound(status);
}

absl::Span<const uint8_t> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

absl::Status ProtocolError(absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("the source does not follow the protocol: ", what));
}

}  // namespace

DestinationMigration::DestinationMigration(std::unique_ptr<DestinationVm> vm,
                                           std::unique_ptr<SourceDialer> dialer,
                                           DestinationGuest guest,
                                           DestinationOptions options,
                                           Clock* clock)
    : guest_(std::move(guest)),
      options_(options),
      clock_(clock),
      dialer_(std::move(dialer)),
      vm_(std::move(vm)),
      bulk_limit_(options.bulk_limit_per_second) {
  snapshot_.phase_since_ns = clock->NowNanos();
  history_.Add(snapshot_.phase, snapshot_.phase_since_ns, "");
}

DestinationMigration::~DestinationMigration() { Stop(); }

absl::Status DestinationMigration::Start() {
  absl::StatusOr<PageBitmap> stale = PageBitmap::Create(vm_->layout().pages());
  if (!stale.ok()) return stale.status();
  stale_ = *std::move(stale);
  absl::Status ordered = vm_->SetPullOrder(NewPullOrder(options_.pull_order));
  if (!ordered.ok()) return ordered;
  lost_since_ns_ = clock_->NowNanos();
  absl::StatusOr<std::thread> driver = StartThread([this] { Drive(); });
  if (!driver.ok()) return driver.status();
  driver_ = *std::move(driver);
  return absl::OkStatus();
}

void DestinationMigration::AskToStop() {
  std::lock_guard lock(mutex_);
  stopping_ = true;
  stop_poisoning_.store(true);
  DisconnectLocked();
  changed_.notify_all();
}

void DestinationMigration::Stop() {
  AskToStop();
  if (driver_.joinable()) driver_.join();
  if (guest_thread_.joinable()) guest_thread_.join();
}

// --- The driver.

bool DestinationMigration::CompleteLocked() const {
  // With nothing stale every page may be here before the guest is.
  return all_resident_ && guest_settled_;
}

bool DestinationMigration::StopWantedLocked() const {
  return stopping_ || vmm_gone_ || CompleteLocked() ||
         HasEnded(snapshot_.phase) || (cancel_requested_ && !ready_);
}

void DestinationMigration::Drive() {
  RedialPause pause(options_.retry_nanos_first, options_.retry_nanos_last);
  while (true) {
    absl::StatusOr<std::unique_ptr<SourceConnection>> dialled = Dial();
    absl::Status status = dialled.status();
    std::shared_ptr<SourceConnection> connection;
    if (dialled.ok()) {
      connection = *std::move(dialled);
      const PageCount missing = vm_->counters().missing;
      status = Serve(connection);
      pause.OnSessionEnded(status, vm_->counters().missing < missing);
      lost_since_ns_ = clock_->NowNanos();
    }
    if (!AfterLoss(status)) {
      Conclude(connection.get());
      return;
    }
    // One that Pause kept from being used would stay open meanwhile.
    connection.reset();
    WaitToDial(pause.Next());
  }
}

absl::StatusOr<std::unique_ptr<SourceConnection>> DestinationMigration::Dial() {
  std::stop_token stop;
  {
    std::lock_guard lock(mutex_);
    if (StopWantedLocked()) return absl::CancelledError("stopped");
    if (held_) return absl::CancelledError("paused");
    dialled_after_pauses_ = pauses_;
    dial_now_ = false;
    TakeDialerLocked();
    EnterLocked(MigrationEvent::kDial, snapshot_.message);
    stop = NewDialLocked();
  }
  auto opened = dialer_->Open(++epoch_, std::move(stop));
  const DestinationRam& ram = vm_->ram();
  if (!opened.ok() || ram.largest_unit() == PageCount(1)) return opened;
  return std::make_unique<HugePageConnection>(*std::move(opened), &ram);
}

std::stop_token DestinationMigration::NewDialLocked() {
  dial_ = std::stop_source();
  return dial_.get_token();
}

void DestinationMigration::DisconnectLocked() {
  if (connection_ != nullptr) connection_->Abort();
  dial_.request_stop();
}

void DestinationMigration::TakeDialerLocked() {
  if (next_dialer_ == nullptr) return;
  dialer_ = std::move(next_dialer_);
  // Another address of the same source.
  if (compression_forgone_) dialer_->ForgoCompression();
}

absl::Status DestinationMigration::Serve(
    const std::shared_ptr<SourceConnection>& shared) {
  SourceConnection* const connection = shared.get();
  {
    std::lock_guard lock(mutex_);
    if (StopWantedLocked()) return absl::CancelledError("stopped");
    // Also if Recover came since: it may have named another source.
    if (held_ || pauses_ != dialled_after_pauses_) {
      return absl::CancelledError("paused");
    }
    connection_ = shared;
    // Answered by this session, unless it named another source since.
    if (next_dialer_ == nullptr) dial_now_ = false;
  }
  absl::Status urgent_end;
  absl::StatusOr<std::thread> urgent =
      StartThread([&] { urgent_end = ReceiveUrgent(connection); });
  // Worth another try: threads end.
  absl::Status status = urgent.ok()
                            ? Begin(connection)
                            : absl::UnavailableError(urgent.status().message());
  if (status.ok()) status = ReceiveAll(connection);
  connection->Abort();
  if (urgent.ok()) urgent->join();
  // The urgent lane, if it ends first, takes the bulk lane with it.
  if (absl::IsCancelled(status)) status = std::move(urgent_end);
  {
    std::lock_guard lock(mutex_);
    connection_ = nullptr;
    changed_.notify_all();
  }
  // From here on the background and the fault loop no longer use it.
  vm_->OnSourceLost();
  return status;
}

absl::Status DestinationMigration::Begin(SourceConnection* connection) {
  bool committed = false;
  bool ready = false;
  {
    std::lock_guard lock(mutex_);
    committed = committed_;
    ready = ready_;
    if (!ready && !connection->committed()) {
      EnterLocked(MigrationEvent::kSession, "");
    }
  }
  if (!committed && !connection->committed()) {
    source_id_ = connection->session_id();
    // If ready, the source may still hand over what has been received.
    if (ready) return absl::OkStatus();
    // Whatever a broken switch-over left is void.
    stale_.Reset();
    device_state_.clear();
    damaged_in_round_ = 0;
    return absl::OkStatus();
  }
  if (!committed) {
    if (!ready) {
      // Nobody has the guest: whatever the source is, it is not ours.
      Fail(MigrationEvent::kSessionCommitted,
           "the source committed a switch-over that never arrived here");
      return ProtocolError("it committed before it was told to");
    }
    if (absl::Status s = CheckSource(*connection); !s.ok()) return s;
    return TakeOver(connection);
  }
  if (absl::Status s = CheckSource(*connection); !s.ok()) return s;
  if (absl::Status s = vm_->OnSourceBack(connection); !s.ok()) return s;
  {
    std::lock_guard lock(mutex_);
    if (held_) return absl::CancelledError("paused");
    ++snapshot_.recoveries;
    EnterLocked(MigrationEvent::kSessionCommitted, "the source is back");
  }
  TellResumed();
  return absl::OkStatus();
}

// The pages of another source may be another guest's, or of another time. The
// right one may yet come back.
absl::Status DestinationMigration::CheckSource(
    const SourceConnection& connection) const {
  if (connection.committed() && connection.session_id() == source_id_) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      "who answers there has not handed this guest over");
}

void DestinationMigration::TellResumed() {
  std::shared_ptr<SourceConnection> connection;
  int64_t nanos = 0;
  {
    std::lock_guard lock(mutex_);
    if (resume_nanos_ < 0 || resumed_told_ || connection_ == nullptr) return;
    connection = connection_;
    nanos = resume_nanos_;
  }
  // Without the lock: a source that takes nothing any more would hold it.
  const bool told = connection->SendResumed(nanos).ok();
  std::lock_guard lock(mutex_);
  resumed_told_ = resumed_told_ || told;
}

absl::Status DestinationMigration::ReceiveAll(SourceConnection* connection) {
  while (true) {
    absl::StatusOr<BulkEvent> event = connection->ReceiveBulk();
    if (!event.ok()) return event.status();
    if (absl::Status s = Handle(connection, *event); !s.ok()) return s;
  }
}

absl::Status DestinationMigration::ReceiveUrgent(SourceConnection* connection) {
  // As that of the fault loop, for which it stands in.
  ::pthread_setname_np(::pthread_self(), "fault-answers");
  absl::Status status;
  while (status.ok()) {
    absl::StatusOr<absl::Span<const ReceivedRun>> runs =
        connection->ReceiveUrgent();
    status = runs.ok() ? vm_->OnUrgentPagesStandingIn(*runs) : runs.status();
  }
  // The bulk lane alone is of no use.
  connection->Abort();
  return status;
}

bool DestinationMigration::AfterLoss(const absl::Status& lost) {
  std::lock_guard lock(mutex_);
  if (StopWantedLocked()) return false;
  if (committed_) {
    // Pause has said why; or Recover, which came right behind it, what is next.
    if (held_ || dial_now_) return true;
    // Whatever the reason: the guest runs here and needs its pages.
    EnterLocked(MigrationEvent::kSessionLost,
                absl::StrCat("the source cannot be reached, threads that "
                             "touch a missing page wait: ",
                             lost.message()));
    return true;
  }
  const bool waited =
      clock_->NowNanos() - lost_since_ns_ > options_.reconnect_nanos;
  // Having said "ready", only the source knows whose the guest is: no error
  // found here can decide it.
  if (ready_ ? !SourceHasGivenUp(lost) : WorthAnotherTry(lost) && !waited) {
    EnterLocked(MigrationEvent::kSessionLost,
                absl::StrCat("looking for the source: ", lost.message()));
    return true;
  }
  EnterLocked(MigrationEvent::kGivenUp,
              absl::StrCat("given up; the guest goes on at the source: ",
                           lost.message()));
  return false;
}

void DestinationMigration::WaitToDial(int64_t nanos) {
  std::unique_lock lock(mutex_);
  const auto woken = [this] {
    return StopWantedLocked() || abandon_requested_ || dial_now_;
  };
  if (!held_) {
    changed_.wait_for(lock, std::chrono::nanoseconds(nanos),
                      [&] { return held_ || woken(); });
  }
  while (held_ && !StopWantedLocked()) {
    changed_.wait(lock, [&] { return !held_ || woken(); });
    if (!abandon_requested_) continue;
    lock.unlock();
    AbandonNow();
    lock.lock();
  }
}

void DestinationMigration::AbandonNow() {
  absl::Status poisoned = vm_->PoisonMissing(stop_poisoning_);
  std::lock_guard lock(mutex_);
  if (poisoned.ok() && !StopWantedLocked()) {
    abandoned_ = true;
    EnterLocked(MigrationEvent::kAbandoned,
                absl::StrCat("abandoned by request with ",
                             ToString(vm_->counters().missing),
                             " missing: who touches one gets SIGBUS"));
  }
  if (poisoned.ok() && !abandoned_) {
    poisoned =
        absl::FailedPreconditionError("the migration is ending by itself");
  }
  abandon_status_ = std::move(poisoned);
  abandon_requested_ = false;
  changed_.notify_all();
}

void DestinationMigration::Conclude(SourceConnection* connection) {
  bool complete = false;
  bool release = false;
  bool tell = false;
  {
    std::lock_guard lock(mutex_);
    if (!stopping_ && vmm_gone_ && !CompleteLocked()) {
      EnterLocked(MigrationEvent::kVmmGone, "the VMM closed its connection");
    } else if (!stopping_ && cancel_requested_ && !ready_) {
      EnterLocked(MigrationEvent::kCancel,
                  "cancelled by request; the guest goes on at the source");
    }
    complete = CompleteLocked() && !HasEnded(snapshot_.phase) && !stopping_;
    // What is poisoned stays so.
    release = snapshot_.phase == DestinationPhase::kCancelled || abandoned_;
    // A guest that was handed over and is lost all the same goes on nowhere.
    tell = !stopping_ && (!committed_ || abandoned_);
  }
  if (complete) {
    Complete(connection);
  } else {
    vm_->Abort(release);
    if (tell) guest_.ended(/*completed=*/false);
  }
  ReleaseVm();
}

void DestinationMigration::ReleaseVm() {
  // Outlives the lock: the last descriptor of large RAM takes time.
  std::unique_ptr<DestinationVm> released;
  std::unique_lock lock(mutex_);
  // The guest thread uses the VM until the VMM has answered or gone.
  changed_.wait(lock, [this] { return !guest_thread_active_ || stopping_; });
  if (guest_thread_active_) return;
  snapshot_.pages = vm_->counters();
  snapshot_.fault_latency = vm_->FaultLatency();
  snapshot_.fault_times = vm_->FaultStages();
  released = std::move(vm_);
}

void DestinationMigration::Complete(SourceConnection* connection) {
  if (absl::Status s = vm_->Finish(); !s.ok()) {
    Fail(MigrationEvent::kBroken,
         absl::StrCat("every page is here, but serving could not be ended: ",
                      s.message()));
    return;
  }
  absl::Status told = connection == nullptr
                          ? absl::UnavailableError("not connected")
                          : connection->Complete();
  int64_t retry_nanos = options_.retry_nanos_first;
  int tries_after_vmm = 0;
  // ABORTED, NOT_FOUND: the source has nothing left to forget.
  while (!told.ok() && !SourceHasGivenUp(told)) {
    Enter(MigrationEvent::kUntold,
          absl::StrCat("every page is here; the source cannot be told: ",
                       told.message()));
    std::stop_token stop;
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::nanoseconds(retry_nanos),
                        [this] { return stopping_; });
      if (stopping_) break;
      // A guest that has ended leaves nothing to be right about; the source is
      // told for its own sake.
      if (vmm_gone_ && ++tries_after_vmm > kTriesAfterVmmMax) break;
      // Recover may have brought one that has not been needed for pages.
      TakeDialerLocked();
      stop = NewDialLocked();
    }
    retry_nanos = std::min(retry_nanos * 2, options_.retry_nanos_last);
    absl::StatusOr<std::unique_ptr<SourceConnection>> again =
        dialer_->Open(++epoch_, std::move(stop));
    told = again.ok() ? (*again)->Complete() : again.status();
  }
  guest_.ended(/*completed=*/true);
  Enter(MigrationEvent::kCompleted, "every page is at the destination");
}

// --- What arrives.

absl::Status DestinationMigration::Handle(SourceConnection* connection,
                                          const BulkEvent& event) {
  if (const auto* pages = std::get_if<PagesArrived>(&event)) {
    return Take(*pages);
  }
  if (std::holds_alternative<Committed>(event)) {
    {
      std::lock_guard lock(mutex_);
      if (!ready_ || committed_) return ProtocolError("a commit out of turn");
    }
    return TakeOver(connection);
  }
  if (const auto* dirtied = std::get_if<PagesDirtied>(&event)) {
    return TakeDirtied(*dirtied);
  }
  {
    std::lock_guard lock(mutex_);
    if (ready_) return ProtocolError("precopy after the switch-over");
  }
  if (const auto* round = std::get_if<RoundEnded>(&event)) {
    return Acknowledge(connection, round->round);
  }
  if (const auto* piece = std::get_if<StalePiece>(&event)) {
    return TakeStale(*piece);
  }
  if (const auto* discard = std::get_if<EarlyDiscard>(&event)) {
    return DiscardEarly(connection, discard->round);
  }
  if (const auto* state = std::get_if<DeviceStatePiece>(&event)) {
    return TakeDeviceState(state->data);
  }
  return GetReady(connection, std::get<SwitchOverComplete>(event));
}

absl::Status DestinationMigration::SeeToCompression(const PagesArrived& pages) {
  if (pages.decompressed) damaged_compressed_ = 0;
  damaged_compressed_ += pages.damaged_compressed_runs;
  if (damaged_compressed_ < kDamagedCompressedRunsMax) return absl::OkStatus();
  damaged_compressed_ = 0;
  compression_forgone_ = true;
  dialer_->ForgoCompression();
  return absl::DataLossError(
      absl::StrCat(kDamagedCompressedRunsMax,
                   " compressed runs of pages in a row could not be decoded: "
                   "from now on they are asked for as they are"));
}

absl::Status DestinationMigration::Take(const PagesArrived& pages) {
  bool committed = false;
  {
    std::lock_guard lock(mutex_);
    committed = committed_;
    if (ready_ && !committed) return ProtocolError("pages before the commit");
    snapshot_.damaged_runs += pages.damaged_runs;
  }
  if (absl::Status s = SeeToCompression(pages); !s.ok()) return s;
  if (!committed) {
    damaged_in_round_ += pages.damaged_runs;
    return vm_->StorePrecopied(pages.runs);
  }
  if (pages.damaged_runs > 0) {
    return absl::DataLossError("the checksum of a page did not fit");
  }
  return vm_->OnBulkPages(pages.runs);
}

absl::Status DestinationMigration::TakeDirtied(const PagesDirtied& dirtied) {
  {
    std::lock_guard lock(mutex_);
    if (!committed_) return ProtocolError("statistics before the commit");
  }
  return vm_->OnRecentlyDirtied(dirtied.runs);
}

absl::Status DestinationMigration::Acknowledge(SourceConnection* connection,
                                               uint32_t round) {
  {
    std::lock_guard lock(mutex_);
    snapshot_.rounds = round;
  }
  return connection->SendRoundAck(round, std::exchange(damaged_in_round_, 0));
}

absl::Status DestinationMigration::DiscardEarly(SourceConnection* connection,
                                                uint32_t round) {
  absl::StatusOr<PageCount> discarded = vm_->DiscardStale(stale_.view());
  if (!discarded.ok()) return discarded.status();
  // The last stale set names all of them once more.
  stale_.Reset();
  return Acknowledge(connection, round);
}

absl::Status DestinationMigration::TakeStale(const StalePiece& piece) {
  const PageBitmapView stale = stale_.view();
  const uint64_t first_word =
      piece.first.value() / PageBitmapView::kPagesPerWord;
  const uint64_t words = piece.bits.size() / sizeof(uint64_t);
  if (first_word > stale.word_count() ||
      words > stale.word_count() - first_word) {
    return absl::OutOfRangeError(
        "the stale set names pages outside the layout");
  }
  for (uint64_t i = 0; i < words; ++i) {
    uint64_t bits = 0;
    std::memcpy(&bits, piece.bits.data() + i * sizeof(bits), sizeof(bits));
    stale.OrWord(first_word + i, bits);
  }
  return absl::OkStatus();
}

absl::Status DestinationMigration::TakeDeviceState(absl::string_view data) {
  Enter(MigrationEvent::kSwitch, "");
  if (data.size() > kReceivedDeviceStateBytesMax - device_state_.size()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the device state is larger than ",
                     kReceivedDeviceStateBytesMax, " bytes"));
  }
  device_state_.append(data.data(), data.size());
  return absl::OkStatus();
}

absl::Status DestinationMigration::GetReady(
    SourceConnection* connection, const SwitchOverComplete& complete) {
  Enter(MigrationEvent::kSwitch, "");
  if (device_state_.size() != complete.device_state_bytes ||
      Crc32c(AsBytes(device_state_)) != complete.device_state_crc32c) {
    return absl::DataLossError("the device state did not arrive as it was");
  }
  if (stale_.view().Count() != complete.stale) {
    return absl::DataLossError("the stale set did not arrive as it was");
  }
  absl::StatusOr<PageCount> discarded = vm_->DiscardStale(stale_.view());
  if (!discarded.ok()) return discarded.status();
  {
    std::lock_guard lock(mutex_);
    if (cancel_requested_ || vmm_gone_ || stopping_) {
      return absl::CancelledError("the end was asked for");
    }
    // Set before it is sent: from then on the source may commit.
    ready_ = true;
    snapshot_.stale = complete.stale;
    SetMessageLocked("ready; the source has the last word");
  }
  return connection->SendReady(*discarded);
}

absl::Status DestinationMigration::TakeOver(SourceConnection* connection) {
  ByteCount limit;
  {
    std::lock_guard lock(mutex_);
    committed_ = true;
    limit = bulk_limit_;
    EnterLocked(MigrationEvent::kCommit, "the VMM loads device state");
  }
  absl::Status status = WhenThereIsRoom([&] {
    return vm_->StartServing(
        connection, limit.value(),
        [this](const absl::Status& end) { OnServingEnded(end); },
        options_.bulk_share);
  });
  if (!status.ok()) {
    Fail(MigrationEvent::kBroken,
         absl::StrCat("faults cannot be served: ", status.message()));
    return status;
  }
  stale_ = PageBitmap();
  {
    // One that was set meanwhile has not been heard.
    std::lock_guard lock(mutex_);
    if (bulk_limit_ != limit) vm_->SetBulkLimit(bulk_limit_.value());
  }
  // On a thread of its own: loading touches RAM, and if the source is lost
  // meanwhile this one has to bring it back.
  {
    std::lock_guard lock(mutex_);
    guest_thread_active_ = true;
  }
  status = WhenThereIsRoom([this] { return StartGuestThread(); });
  if (status.ok()) return status;
  {
    std::lock_guard lock(mutex_);
    guest_thread_active_ = false;
  }
  Fail(MigrationEvent::kBroken,
       absl::StrCat("the guest was handed over but cannot be run: ",
                    status.message()));
  return status;
}

absl::Status DestinationMigration::StartGuestThread() {
  absl::StatusOr<std::thread> guest = StartThread([this] {
    RunGuest();
    {
      std::lock_guard lock(mutex_);
      guest_thread_active_ = false;
      changed_.notify_all();
    }
    SeeLanesEnd();
  });
  if (guest.ok()) guest_thread_ = *std::move(guest);
  return guest.status();
}

absl::Status DestinationMigration::WhenThereIsRoom(
    const std::function<absl::Status()>& begin) {
  while (true) {
    absl::Status status = begin();
    if (!absl::IsResourceExhausted(status)) return status;
    std::unique_lock lock(mutex_);
    SetMessageLocked(
        absl::StrCat("the guest is here and waits for room: ", status.message(),
                     "; raise LimitNOFILE= or TasksMax=, or end something"));
    const bool ended = changed_.wait_for(
        lock, kRoomPause, [this] { return StopWantedLocked() || vmm_gone_; });
    if (ended) return status;
  }
}

void DestinationMigration::RunGuest() {
  const int64_t started = clock_->NowNanos();
  absl::Status status = guest_.load_device_state(device_state_);
  if (status.ok()) status = guest_.resume();
  if (!status.ok()) {
    Fail(MigrationEvent::kBroken,
         absl::StrCat("the guest was handed over but does not run: ",
                      status.message()));
    return;
  }
  {
    std::lock_guard lock(mutex_);
    resume_nanos_ = clock_->NowNanos() - started;
    if (snapshot_.phase == DestinationPhase::kPostcopy) {
      SetMessageLocked("the guest runs here");
    }
  }
  TellResumed();
  device_state_ = std::string();
  if (status = vm_->StartBackground(); !status.ok()) {
    Fail(MigrationEvent::kBroken,
         absl::StrCat("the rest cannot be fetched: ", status.message()));
    return;
  }
  {
    std::lock_guard lock(mutex_);
    guest_settled_ = true;
  }
  EndIfComplete();
}

void DestinationMigration::SeeLanesEnd() {
  std::unique_lock lock(mutex_);
  const auto over = [this] {
    return stopping_ || vmm_gone_ || HasEnded(snapshot_.phase);
  };
  changed_.wait(lock, [&] { return over() || CompleteLocked(); });
  const auto ended = [&] { return over() || connection_ == nullptr; };
  const auto patience = std::chrono::nanoseconds(options_.lanes_end_nanos);
  if (changed_.wait_for(lock, patience, ended)) return;
  connection_->Abort();
}

void DestinationMigration::EndIfComplete() {
  std::shared_ptr<SourceConnection> connection;
  {
    std::lock_guard lock(mutex_);
    if (!CompleteLocked()) return;
    connection = connection_;
    changed_.notify_all();
  }
  if (connection != nullptr) connection->EndRequests();
}

void DestinationMigration::OnServingEnded(const absl::Status& status) {
  // DATA_LOSS: some pages were lost and poisoned, but none is missing. The
  // guest lives, and what is registered still must not stay so unserved.
  if (!status.ok() && !absl::IsDataLoss(status)) {
    {
      // Every page is here, and the memory is about to be let go.
      std::lock_guard lock(mutex_);
      if (all_resident_) return;
    }
    Fail(MigrationEvent::kBroken,
         absl::StrCat("faults are no longer served: ", status.message()));
    return;
  }
  {
    std::lock_guard lock(mutex_);
    all_resident_ = true;
  }
  EndIfComplete();
}

// --- Ends.

absl::Status DestinationMigration::PermitLocked(MigrationEvent command) const {
  return Permit(MigrationRole::kDestination, snapshot_.phase, command,
                snapshot_.message);
}

absl::Status DestinationMigration::Cancel() {
  std::unique_lock lock(mutex_);
  absl::Status permitted =
      PermitLocked(ready_ && snapshot_.phase == DestinationPhase::kSwitching
                       ? MigrationEvent::kCancelAfterReady
                       : MigrationEvent::kCancel);
  if (!permitted.ok() || HasEnded(snapshot_.phase)) return permitted;
  cancel_requested_ = true;
  DisconnectLocked();
  changed_.notify_all();
  changed_.wait(lock,
                [this] { return HasEnded(snapshot_.phase) || stopping_; });
  return CancelledLocked();
}

absl::Status DestinationMigration::CancelledLocked() const {
  if (HasEnded(snapshot_.phase)) return PermitLocked(MigrationEvent::kCancel);
  return absl::UnavailableError("the daemon is ending");
}

absl::Status DestinationMigration::Pause() {
  std::unique_lock lock(mutex_);
  absl::Status permitted = PermitLocked(MigrationEvent::kPause);
  if (!permitted.ok()) return permitted;
  if (CompleteLocked()) {
    return absl::FailedPreconditionError(
        "every page is here: there is nothing to pause");
  }
  held_ = true;
  ++pauses_;
  dial_now_ = false;
  snapshot_.pause_requested = true;
  EnterLocked(MigrationEvent::kPause,
              "paused by request until RecoverMigration; threads that touch a "
              "missing page wait");
  DisconnectLocked();
  changed_.wait(lock, [this] {
    return connection_ == nullptr || !held_ || StopWantedLocked();
  });
  return absl::OkStatus();
}

absl::Status DestinationMigration::Recover(
    std::unique_ptr<SourceDialer> dialer) {
  std::lock_guard lock(mutex_);
  absl::Status permitted = PermitLocked(MigrationEvent::kRecover);
  if (!permitted.ok()) return permitted;
  if (abandon_requested_) {
    return absl::FailedPreconditionError("the migration is being abandoned");
  }
  if (dialer != nullptr) next_dialer_ = std::move(dialer);
  held_ = false;
  dial_now_ = true;
  snapshot_.pause_requested = false;
  EnterLocked(MigrationEvent::kRecover, "connecting to the source by request");
  return absl::OkStatus();
}

absl::Status DestinationMigration::Abandon() {
  std::unique_lock lock(mutex_);
  absl::Status permitted = PermitLocked(MigrationEvent::kAbandon);
  if (!permitted.ok()) return permitted;
  held_ = true;
  ++pauses_;
  dial_now_ = false;
  snapshot_.pause_requested = true;
  abandon_requested_ = true;
  DisconnectLocked();
  SetMessageLocked("abandoned by request: poisoning the missing pages");
  changed_.wait(lock, [this] {
    return !abandon_requested_ || CompleteLocked() ||
           HasEnded(snapshot_.phase) || stopping_;
  });
  if (abandoned_) return absl::OkStatus();
  // The end may take as long as its source cannot be told of it.
  if (CompleteLocked() && !HasEnded(snapshot_.phase)) {
    return absl::FailedPreconditionError(
        "every page is here: there is nothing to abandon");
  }
  if (HasEnded(snapshot_.phase)) return PermitLocked(MigrationEvent::kAbandon);
  if (stopping_) return absl::UnavailableError("the daemon is ending");
  return abandon_status_;
}

absl::Status DestinationMigration::Refuse(MigrationEvent command) const {
  std::lock_guard lock(mutex_);
  return PermitLocked(command);
}

absl::Status DestinationMigration::SetBulkLimit(ByteCount per_second) {
  std::lock_guard lock(mutex_);
  absl::Status permitted = PermitLocked(MigrationEvent::kSetLimits);
  if (!permitted.ok()) return permitted;
  bulk_limit_ = per_second;
  if (vm_ != nullptr) vm_->SetBulkLimit(per_second.value());
  return absl::OkStatus();
}

void DestinationMigration::VmmGone() {
  std::lock_guard lock(mutex_);
  vmm_gone_ = true;
  stop_poisoning_.store(true);
  DisconnectLocked();
  changed_.notify_all();
}

void DestinationMigration::Fail(MigrationEvent event, std::string message) {
  std::lock_guard lock(mutex_);
  // What breaks because the daemon ends is no failure.
  if (HasEnded(snapshot_.phase) || stopping_) return;
  EnterLocked(event, std::move(message));
  DisconnectLocked();
}

// --- What others may know.

void DestinationMigration::EnterLocked(MigrationEvent event,
                                       std::string message) {
  const Reaction reaction =
      ReactionOf(MigrationRole::kDestination, snapshot_.phase, event);
  if (HasEnded(snapshot_.phase) ||
      reaction.kind == Reaction::Kind::kImpossible) {
    return;
  }
  const DestinationPhase to =
      reaction.kind == Reaction::Kind::kGoes ? reaction.to : snapshot_.phase;
  if (to == snapshot_.phase && message == snapshot_.message) return;
  if (to != snapshot_.phase) {
    snapshot_.phase = to;
    snapshot_.phase_since_ns = clock_->NowNanos();
    history_.Add(to, snapshot_.phase_since_ns, message);
  }
  SetMessageLocked(std::move(message));
}

void DestinationMigration::Enter(MigrationEvent event, std::string message) {
  std::lock_guard lock(mutex_);
  EnterLocked(event, std::move(message));
}

void DestinationMigration::SetMessageLocked(std::string message) {
  snapshot_.message = std::move(message);
  ++version_;
  if (options_.on_change) {
    options_.on_change(snapshot_.phase, snapshot_.message);
  }
  changed_.notify_all();
}

DestinationPhase DestinationMigration::phase() const {
  std::lock_guard lock(mutex_);
  return snapshot_.phase;
}

std::vector<PhaseChange> DestinationMigration::Changes() const {
  std::lock_guard lock(mutex_);
  return history_.changes();
}

DestinationSnapshot DestinationMigration::Snapshot() const {
  std::lock_guard lock(mutex_);
  DestinationSnapshot snapshot = snapshot_;
  snapshot.bulk_limit = bulk_limit_;
  if (vm_ != nullptr) {
    snapshot.pages = vm_->counters();
    snapshot.fault_latency = vm_->FaultLatency();
    snapshot.fault_times = vm_->FaultStages();
  }
  return snapshot;
}

bool DestinationMigration::ShowsLife() {
  std::lock_guard lock(mutex_);
  return vm_ == nullptr || vm_->ShowsLife();
}

uint64_t DestinationMigration::version() const {
  std::lock_guard lock(mutex_);
  return version_;
}

void DestinationMigration::WaitForChange(uint64_t seen, int64_t nanos) const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::nanoseconds(nanos),
                    [&] { return version_ != seen; });
}

}  // namespace postcopy
