#include "cmd/postcopyctl/migrate.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "cmd/postcopyctl/migrate_step.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/postcopyctl/uptime.h"
#include "dirtytrack/trace_id.h"
#include "grpcpp/client_context.h"

namespace postcopy {
namespace {

// How often the user's wish to stop is looked at.
constexpr absl::Duration kTick = absl::Milliseconds(100);
// A call without an answer is made again: all calls are idempotent.
constexpr int kCreateAttemptsMax = 3;
constexpr int kSwitchOverAttemptsMax = 5;
constexpr absl::Duration kCreateRetryPause = absl::Milliseconds(200);
constexpr absl::Duration kSwitchOverRetryPause = absl::Seconds(1);

absl::Status Annotate(const absl::Status& status, absl::string_view more) {
  return absl::Status(
      status.code(),
      absl::StrCat(absl::StripSuffix(status.message(), "."), "; ", more));
}

bool MayHaveArrived(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// True if a side has ended, and not with COMPLETED.
bool BadlyEnded(const MigrationView& view) {
  for (const SideView* side : {&view.source, &view.destination}) {
    const v1::MigrationState state = side->migration.state();
    if (HasEnded(state) && state != v1::MIGRATION_STATE_COMPLETED) return true;
  }
  return false;
}

// SwitchOver takes as long as the hand-over does, so it has its own thread.
class SwitchOverCall {
 public:
  SwitchOverCall(DaemonClient* source, const std::string& request_id,
                 const MigrateOptions& options, MigrationBoard* board)
      : thread_([=, this, id = options.migration_id,
                 timeout = options.switch_over_timeout] {
          absl::StatusOr<v1::Migration> answer =
              source->SwitchOver(request_id, id, timeout, &context_);
          if (answer.ok()) board->Update(v1::ROLE_SOURCE, *answer);
          board->SetSwitchOver(answer.status());
        }) {}
  // Stops waiting for the answer, which stops nothing at the daemon.
  ~SwitchOverCall() {
    context_.TryCancel();
    thread_.join();
  }

 private:
  grpc::ClientContext context_;
  std::thread thread_;
};

class Migrator {
 public:
  Migrator(const MigrateOptions& options,
           const std::function<bool()>& interrupted, MigrateObserver* observer)
      : options_(options),
        interrupted_(interrupted),
        observer_(observer),
        source_(v1::ROLE_SOURCE, options.source_address, options.security,
                options.call_timeout),
        destination_(v1::ROLE_DESTINATION, options.destination_address,
                     options.security, options.call_timeout) {}

  MigrateResult Run() {
    absl::Status status = Prepare();
    if (status.ok()) status = Drive();
    status = ResumeAtEnd(std::move(status));
    MigrationView view = board_.View();
    return {.status = status,
            .source = view.source.migration,
            .destination = view.destination.migration,
            .total = Uptime() - start_};
  }

 private:
  enum class Cancelled { kYes, kTooLate, kUnknown };

  absl::Status Prepare();
  absl::Status CreateSide(DaemonClient* client,
                          const v1::CreateMigrationRequest& request);
  absl::Status Drive();
  void ShowProgress(const MigrationView& view);
  // Does what `step` says. The end of the migration, or nullopt.
  std::optional<absl::Status> Perform(MigrateStep step,
                                      const MigrationView& view);
  MigrateSituation Situation() const;
  // The error of the pause command, if it fails.
  absl::Status CallSwitchOver(const MigrationView& view);
  absl::Status Hook(HookEvent event, v1::Role side);
  // Lets a guest run that the pause command has stopped, where it is now.
  void ResumeHandedOver(const MigrationView& view);
  absl::Status ResumeAtEnd(absl::Status end);
  std::optional<absl::Status> HandleRefusal(const absl::Status& why);
  absl::Status Succeed(const MigrationView& view);
  absl::Status HandleBadEnd(const MigrationView& view);
  absl::Status HandleLoss(const MigrationView& view);
  // Cancels if that is still possible; returns `why` with what came of it.
  absl::Status GiveUp(const absl::Status& why);
  Cancelled CancelBoth();
  absl::Status CancelSide(DaemonClient* client);
  std::string LookHint(absl::string_view command) const;

  const MigrateOptions& options_;
  const std::function<bool()>& interrupted_;
  MigrateObserver* const observer_;
  const absl::Duration start_ = Uptime();
  const std::string switch_over_request_id_ = RandomId("switch-over");

  MigrationBoard board_;
  DaemonClient source_;
  DaemonClient destination_;
  int switch_over_attempts_ = 0;
  // The pause command was run, and no resume command since.
  bool hook_paused_ = false;
  absl::Status resume_status_;
  absl::Duration switch_over_called_ = absl::ZeroDuration();
  // After all that they use, so that they end first.
  std::unique_ptr<SideWatcher> source_watcher_;
  std::unique_ptr<SideWatcher> destination_watcher_;
  std::unique_ptr<SwitchOverCall> switch_over_;
};

absl::Status Migrator::Prepare() {
  // Both must be there before either is told anything.
  for (DaemonClient* client : {&source_, &destination_}) {
    absl::Status status = client->Connect();
    if (!status.ok()) return Annotate(status, "nothing has been started");
  }
  const CreateRequests requests = RequestsFor(options_);
  absl::Status status = CreateSide(&source_, requests.source);
  if (!status.ok()) return status;
  status = CreateSide(&destination_, requests.destination);
  if (!status.ok()) return GiveUp(status);
  return absl::OkStatus();
}

absl::Status Migrator::CreateSide(DaemonClient* client,
                                  const v1::CreateMigrationRequest& request) {
  absl::StatusOr<v1::Migration> created;
  for (int attempt = 0; attempt < kCreateAttemptsMax; ++attempt) {
    if (attempt > 0) absl::SleepFor(kCreateRetryPause);
    created = client->Create(request);
    if (created.ok()) {
      board_.Update(client->role(), *created);
      return absl::OkStatus();
    }
    if (!MayHaveArrived(created.status())) return created.status();
  }
  // Not cancelled: without an answer, the id might be somebody else's.
  return Annotate(
      created.status(),
      absl::StrCat("whether it created the migration is not known, ",
                   LookHint("get")));
}

absl::Status Migrator::Drive() {
  source_watcher_ = std::make_unique<SideWatcher>(
      &source_, options_.migration_id, options_.watch, &board_);
  destination_watcher_ = std::make_unique<SideWatcher>(
      &destination_, options_.migration_id, options_.watch, &board_);
  uint64_t version = 0;
  for (;;) {
    MigrationView view = board_.AwaitChange(&version, kTick);
    source_watcher_->BreakSilentStream();
    destination_watcher_->BreakSilentStream();
    observer_->OnView(view, Uptime() - start_);
    ResumeHandedOver(view);
    std::optional<absl::Status> end =
        Perform(NextStep(view, Situation()), view);
    if (end.has_value()) {
      observer_->OnView(board_.View(), Uptime() - start_);
      return *end;
    }
  }
}

MigrateSituation Migrator::Situation() const {
  absl::Duration now = Uptime();
  return {
      .policy = options_.policy,
      .switch_over_called = switch_over_attempts_ > 0,
      .may_retry_switch_over = switch_over_attempts_ < kSwitchOverAttemptsMax,
      .interrupted = interrupted_(),
      .expired = now - start_ >= options_.timeout};
}

std::optional<absl::Status> Migrator::Perform(MigrateStep step,
                                              const MigrationView& view) {
  switch (step) {
    case MigrateStep::kWait:
      return std::nullopt;
    case MigrateStep::kSwitchOver:
      if (absl::Status s = CallSwitchOver(view); !s.ok()) return GiveUp(s);
      return std::nullopt;
    case MigrateStep::kRefused:
      return HandleRefusal(*view.switch_over);
    case MigrateStep::kSucceeded:
      return Succeed(view);
    case MigrateStep::kEndedBadly:
      return HandleBadEnd(view);
    case MigrateStep::kLost:
      return HandleLoss(view);
    case MigrateStep::kInterrupted:
      return GiveUp(absl::CancelledError("interrupted"));
    case MigrateStep::kTimedOut:
      return GiveUp(absl::DeadlineExceededError(
          absl::StrCat("the time limit of ",
                       absl::FormatDuration(options_.timeout), " is over")));
  }
  return absl::InternalError("unknown step");
}

absl::Status Migrator::Hook(HookEvent event, v1::Role side) {
  const std::string& command = event == HookEvent::kPause
                                   ? options_.pause_command
                                   : options_.resume_command;
  hook_paused_ = event == HookEvent::kPause;
  if (command.empty()) return absl::OkStatus();
  return RunHook(command,
                 {.event = event,
                  .side = side,
                  .vm_name = options_.vm_name,
                  .migration_id = options_.migration_id,
                  .source_address = options_.source_address,
                  .destination_address = options_.destination_address},
                 options_.hook_timeout);
}

void Migrator::ResumeHandedOver(const MigrationView& view) {
  // Not the source's word: pages are served once the destination has taken
  // over.
  if (!hook_paused_ || !IsHandedOver(view.destination.migration.state())) {
    return;
  }
  resume_status_ = Hook(HookEvent::kResume, v1::ROLE_DESTINATION);
  if (!resume_status_.ok()) {
    observer_->OnMessage(
        absl::StrCat(resume_status_.message(), "; the migration goes on"));
  }
}

absl::Status Migrator::ResumeAtEnd(absl::Status end) {
  // Whoever stops waiting in the middle of a hand-over still has to see to the
  // guest that was stopped for it; the watchers go on.
  const absl::Duration until = Uptime() + options_.call_timeout;
  uint64_t version = 0;
  MigrationView view = board_.View();
  ResumeHandedOver(view);
  while (hook_paused_ && !BadlyEnded(view) && Uptime() < until) {
    view = board_.AwaitChange(&version, kTick);
    ResumeHandedOver(view);
  }
  if (!resume_status_.ok()) {
    return end.ok() ? resume_status_ : Annotate(end, resume_status_.message());
  }
  if (!hook_paused_) return end;
  // No other state of a source says that the guest is its own again.
  const v1::MigrationState source = view.source.migration.state();
  if (source != v1::MIGRATION_STATE_CANCELLED &&
      source != v1::MIGRATION_STATE_FAILED) {
    return Annotate(end,
                    "the resume command was not run, for where the guest "
                    "belongs is not known");
  }
  const absl::Status resumed = Hook(HookEvent::kResume, v1::ROLE_SOURCE);
  return resumed.ok() ? end : Annotate(end, resumed.message());
}

absl::Status Migrator::CallSwitchOver(const MigrationView& view) {
  absl::Duration now = Uptime();
  if (switch_over_attempts_ > 0 &&
      now - switch_over_called_ < kSwitchOverRetryPause) {
    return absl::OkStatus();
  }
  switch_over_called_ = now;
  if (switch_over_attempts_++ == 0) {
    const std::string& reason = view.source.migration.advice().reason();
    observer_->OnMessage(
        absl::StrCat("switching over", reason.empty() ? "" : ": ", reason));
    if (!options_.pause_command.empty()) {
      absl::Status paused = Hook(HookEvent::kPause, v1::ROLE_SOURCE);
      if (!paused.ok()) return paused;
    }
  }
  switch_over_.reset();
  board_.SetSwitchOver(std::nullopt);
  switch_over_ = std::make_unique<SwitchOverCall>(
      &source_, switch_over_request_id_, options_, &board_);
  return absl::OkStatus();
}

std::optional<absl::Status> Migrator::HandleRefusal(const absl::Status& why) {
  // What was watched may be older than the refusal, and somebody else may have
  // asked for the switch-over before us.
  absl::StatusOr<v1::Migration> now = source_.Get(options_.migration_id);
  if (now.ok()) {
    board_.Update(v1::ROLE_SOURCE, *now);
    if (now->state() == v1::MIGRATION_STATE_SWITCHING ||
        IsHandedOver(now->state())) {
      board_.SetSwitchOver(absl::OkStatus());
      return std::nullopt;
    }
  }
  return GiveUp(Annotate(why, "the switch-over did not happen"));
}

absl::Status Migrator::Succeed(const MigrationView& view) {
  if (view.source.migration.state() != v1::MIGRATION_STATE_COMPLETED) {
    observer_->OnMessage(absl::StrCat("every page is at the destination, but ",
                                      source_.Description(),
                                      " did not say that it is done"));
  }
  return absl::OkStatus();
}

absl::Status Migrator::HandleBadEnd(const MigrationView& view) {
  // The destination mostly follows the source, so the source's reason first.
  v1::MigrationState state = view.source.migration.state();
  bool at_source = HasEnded(state) && state != v1::MIGRATION_STATE_COMPLETED;
  const v1::Migration& ended =
      at_source ? view.source.migration : view.destination.migration;
  absl::Status why = absl::AbortedError(absl::StrCat(
      ended.state() == v1::MIGRATION_STATE_CANCELLED ? "cancelled" : "failed",
      " at the ", RoleName(at_source ? v1::ROLE_SOURCE : v1::ROLE_DESTINATION),
      ended.status_message().empty() ? "" : ": ", ended.status_message()));
  // FAILED: the VM is lost there, so the guest goes on only if that was the
  // side it did not run on.
  if (state == v1::MIGRATION_STATE_FAILED) {
    (void)CancelSide(&destination_);
    return why;
  }
  // What was watched may be older than the hand-over; after it, nothing goes on
  // that has ended badly.
  if (IsHandedOver(view) || CancelBoth() == Cancelled::kTooLate) return why;
  return GiveUp(why);
}

absl::Status Migrator::HandleLoss(const MigrationView& view) {
  const SideView& side = view.source.lost ? view.source : view.destination;
  return GiveUp(side.stream);
}

absl::Status Migrator::GiveUp(const absl::Status& why) {
  switch (CancelBoth()) {
    case Cancelled::kYes:
      return Annotate(why,
                      "the migration is cancelled, the guest goes on at the "
                      "source");
    case Cancelled::kTooLate:
      return Annotate(why, absl::StrCat("the switch-over is done, so the "
                                        "migration goes on without this "
                                        "program, ",
                                        LookHint("watch")));
    case Cancelled::kUnknown:
      break;
  }
  return Annotate(why, absl::StrCat("whether the migration is cancelled is not "
                                    "known, ",
                                    LookHint("get")));
}

Migrator::Cancelled Migrator::CancelBoth() {
  if (IsHandedOver(board_.View())) return Cancelled::kTooLate;
  // The source first: it alone decides whether the guest leaves.
  absl::Status source = CancelSide(&source_);
  if (absl::IsFailedPrecondition(source)) return Cancelled::kTooLate;
  absl::Status destination = CancelSide(&destination_);
  if (source.ok()) return Cancelled::kYes;
  if (absl::IsFailedPrecondition(destination)) return Cancelled::kTooLate;
  // A source that was started again has forgotten what it had not handed over.
  if (absl::IsNotFound(source)) return Cancelled::kYes;
  observer_->OnMessage(source.message());
  return Cancelled::kUnknown;
}

absl::Status Migrator::CancelSide(DaemonClient* client) {
  // Not created, or created without our knowing: see CreateSide().
  MigrationView view = board_.View();
  const SideView& side = client == &source_ ? view.source : view.destination;
  if (side.migration.state() == v1::MIGRATION_STATE_UNSPECIFIED) {
    return absl::NotFoundError("never created");
  }
  if (side.migration.state() == v1::MIGRATION_STATE_CANCELLED) {
    return absl::OkStatus();
  }
  absl::StatusOr<v1::Migration> cancelled =
      client->Cancel(RandomId("cancel"), options_.migration_id);
  if (cancelled.ok()) board_.Update(client->role(), *cancelled);
  return cancelled.status();
}

std::string Migrator::LookHint(absl::string_view command) const {
  return absl::StrCat("see: postcopyctl ", command,
                      " --migration_id=", options_.migration_id,
                      " --source=", options_.source_address,
                      " --destination=", options_.destination_address);
}

}  // namespace

CreateRequests RequestsFor(const MigrateOptions& options) {
  v1::CreateMigrationRequest request;
  request.set_migration_id(options.migration_id);
  request.set_vm_name(options.vm_name);
  request.set_policy(options.policy);
  request.set_bulk_limit_bytes_per_second(options.bandwidth.value());
  // One for both, so that their logs can be read together.
  request.set_trace_id(NewTraceId());
  CreateRequests requests{.source = request, .destination = request};
  requests.source.set_request_id(RandomId("create"));
  requests.source.set_rounds_max(options.rounds_max);
  requests.source.set_bulk_zstd(options.compress);
  requests.source.set_switch_over_mode(options.mode);
  requests.source.set_deadline_ms_per_gib(options.deadline_ms_per_gib);
  requests.destination.set_request_id(RandomId("create"));
  requests.destination.set_source_address(options.source_data_address);
  requests.destination.set_pull_order(options.pull_order);
  return requests;
}

MigrateResult Migrate(const MigrateOptions& options,
                      const std::function<bool()>& interrupted,
                      MigrateObserver* observer) {
  return Migrator(options, interrupted, observer).Run();
}

}  // namespace postcopy
