#include "cmd/postcopyctl/side_watcher.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/postcopyctl/uptime.h"

namespace postcopy {
namespace {

// Answers that a second attempt would only repeat.
bool IsFinal(absl::StatusCode code) {
  return code == absl::StatusCode::kNotFound ||
         code == absl::StatusCode::kInvalidArgument ||
         code == absl::StatusCode::kPermissionDenied ||
         code == absl::StatusCode::kUnauthenticated ||
         code == absl::StatusCode::kUnimplemented;
}

}  // namespace

SideWatcher::SideWatcher(DaemonClient* client, std::string migration_id,
                         const WatchOptions& options, MigrationBoard* board)
    : client_(client),
      migration_id_(std::move(migration_id)),
      options_(options),
      board_(board),
      last_heard_(Uptime()),
      thread_([this] { Run(); }) {}

SideWatcher::~SideWatcher() {
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }
  thread_.join();
}

void SideWatcher::BreakSilentStream() {
  absl::MutexLock lock(&mutex_);
  if (context_ == nullptr) return;
  absl::Duration since = std::max(last_heard_, stream_opened_);
  if (Uptime() - since > options_.silence_max) context_->TryCancel();
}

void SideWatcher::Run() {
  for (;;) {
    absl::Status status = WatchOnce();
    {
      absl::MutexLock lock(&mutex_);
      if (stopped_ || ended_) return;
    }
    if (!MayRetry(status)) {
      board_->SetLost(client_->role(), status);
      return;
    }
    board_->SetInterrupted(client_->role(), status);
    if (PauseUnlessStopped()) return;
  }
}

absl::Status SideWatcher::WatchOnce() {
  grpc::ClientContext context;
  {
    absl::MutexLock lock(&mutex_);
    if (stopped_) return absl::CancelledError();
    context_ = &context;
    stream_opened_ = Uptime();
  }
  absl::Status status = client_->Watch(
      migration_id_, options_.progress_interval,
      [this](const v1::Migration& migration) { Receive(migration); }, &context);
  absl::MutexLock lock(&mutex_);
  context_ = nullptr;
  // Neither an orderly end of the stream nor our own TryCancel() is a reason
  // to show: the daemon cannot be heard, that is all.
  if (status.ok() || absl::IsCancelled(status)) {
    return absl::UnavailableError(
        absl::StrCat(client_->Description(), " stopped reporting"));
  }
  return status;
}

void SideWatcher::Receive(const v1::Migration& migration) {
  {
    absl::MutexLock lock(&mutex_);
    last_heard_ = Uptime();
    ended_ = HasEnded(migration.state());
  }
  board_->Update(client_->role(), migration);
}

bool SideWatcher::MayRetry(const absl::Status& status) {
  if (IsFinal(status.code())) return false;
  absl::MutexLock lock(&mutex_);
  return Uptime() - last_heard_ < options_.reconnect_timeout;
}

bool SideWatcher::PauseUnlessStopped() {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&stopped_),
                                 options_.retry_pause);
}

}  // namespace postcopy
