#include "cmd/postcopyctl/fake_daemon.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cmd/postcopyctl/names.h"
#include "dirtytrack/check.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace postcopy {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr absl::Duration kPoll = absl::Milliseconds(2);

grpc::Status NotFound() {
  return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such migration");
}

}  // namespace

FakeDaemon::FakeDaemon(v1::Role role) : role_(role) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  POSTCOPY_CHECK(server_ != nullptr && port_ > 0);
}

FakeDaemon::~FakeDaemon() { Stop(); }

std::string FakeDaemon::address() const {
  return absl::StrCat("127.0.0.1:", port_);
}

void FakeDaemon::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
  }
  server_->Shutdown(std::chrono::system_clock::now());
}

void FakeDaemon::Change(const std::function<void(v1::Migration*)>& change) {
  absl::MutexLock lock(&mutex_);
  change(&migration_);
  ++version_;
}

void FakeDaemon::SetState(v1::MigrationState state,
                          const std::string& message) {
  Change([&](v1::Migration* migration) {
    migration->set_state(state);
    migration->set_status_message(message);
  });
}

void FakeDaemon::BreakStreams(const grpc::Status& status) {
  absl::MutexLock lock(&mutex_);
  ++breaks_;
  break_status_ = status;
}

void FakeDaemon::RefuseStreams() {
  absl::MutexLock lock(&mutex_);
  refuse_streams_ = true;
}

void FakeDaemon::Forget() {
  absl::MutexLock lock(&mutex_);
  known_ = false;
}

bool FakeDaemon::Await(const std::function<bool()>& condition) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&condition), kPatience);
}

bool FakeDaemon::AwaitCreated() {
  return Await([this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return known_; });
}

bool FakeDaemon::AwaitSwitchOverCall() {
  return Await([this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return !switch_over_request_ids_.empty();
  });
}

bool FakeDaemon::AwaitCancelled() {
  return Await([this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return migration_.state() == v1::MIGRATION_STATE_CANCELLED;
  });
}

bool FakeDaemon::AwaitStreams(int opened) {
  return Await([this, opened]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return streams_opened_ >= opened;
  });
}

v1::CreateMigrationRequest FakeDaemon::create_request() const {
  absl::MutexLock lock(&mutex_);
  return create_request_;
}

std::vector<std::string> FakeDaemon::switch_over_request_ids() const {
  absl::MutexLock lock(&mutex_);
  return switch_over_request_ids_;
}

int FakeDaemon::cancel_calls() const {
  absl::MutexLock lock(&mutex_);
  return cancel_calls_;
}

v1::Migration FakeDaemon::migration() const {
  absl::MutexLock lock(&mutex_);
  return migration_;
}

bool FakeDaemon::IsKnown(const std::string& migration_id) const {
  return known_ && migration_.migration_id() == migration_id;
}

grpc::Status FakeDaemon::CreateMigration(
    grpc::ServerContext*, const v1::CreateMigrationRequest* request,
    v1::CreateMigrationResponse* response) {
  grpc::Status status = on_create();
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  create_request_ = *request;
  if (request->validate_only()) {
    response->mutable_migration()->set_migration_id(request->migration_id());
    return grpc::Status::OK;
  }
  migration_.set_migration_id(request->migration_id());
  migration_.set_vm_name(request->vm_name());
  migration_.set_policy(request->policy());
  migration_.set_role(role_);
  migration_.set_state(v1::MIGRATION_STATE_PREPARING);
  known_ = true;
  *response->mutable_migration() = migration_;
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::GetMigration(grpc::ServerContext*,
                                      const v1::GetMigrationRequest* request,
                                      v1::GetMigrationResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (!IsKnown(request->migration_id())) return NotFound();
  *response->mutable_migration() = migration_;
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::ListMigrations(grpc::ServerContext*,
                                        const v1::ListMigrationsRequest*,
                                        v1::ListMigrationsResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (known_) *response->add_migrations() = migration_;
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::WatchMigration(
    grpc::ServerContext* context, const v1::WatchMigrationRequest* request,
    grpc::ServerWriter<v1::WatchMigrationResponse>* writer) {
  int seen = -1;
  absl::MutexLock lock(&mutex_);
  ++streams_opened_;
  const int breaks = breaks_;
  while (!stopped_ && !context->IsCancelled()) {
    if (refuse_streams_) {
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "refused");
    }
    if (breaks_ != breaks) return break_status_;
    if (!IsKnown(request->migration_id())) return NotFound();
    if (version_ != seen) {
      seen = version_;
      v1::WatchMigrationResponse response;
      *response.mutable_migration() = migration_;
      mutex_.Unlock();
      writer->Write(response);
      mutex_.Lock();
      if (HasEnded(response.migration().state())) return grpc::Status::OK;
      continue;
    }
    mutex_.Unlock();
    absl::SleepFor(kPoll);
    mutex_.Lock();
  }
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "stopping");
}

grpc::Status FakeDaemon::SwitchOver(grpc::ServerContext* context,
                                    const v1::SwitchOverRequest* request,
                                    v1::SwitchOverResponse* response) {
  {
    absl::MutexLock lock(&mutex_);
    switch_over_request_ids_.push_back(request->request_id());
  }
  grpc::Status status = on_switch_over();
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  while (!stopped_ && !context->IsCancelled()) {
    if (IsHandedOver(migration_.state())) {
      *response->mutable_migration() = migration_;
      return grpc::Status::OK;
    }
    if (HasEnded(migration_.state())) {
      return grpc::Status(grpc::StatusCode::ABORTED, "cancelled meanwhile");
    }
    mutex_.Unlock();
    absl::SleepFor(kPoll);
    mutex_.Lock();
  }
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "stopping");
}

grpc::Status FakeDaemon::CancelMigration(
    grpc::ServerContext*, const v1::CancelMigrationRequest* request,
    v1::CancelMigrationResponse* response) {
  grpc::Status status = on_cancel();
  absl::MutexLock lock(&mutex_);
  ++cancel_calls_;
  if (!status.ok()) return status;
  if (!IsKnown(request->migration_id())) return NotFound();
  if (IsHandedOver(migration_.state())) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "too late");
  }
  if (!HasEnded(migration_.state())) {
    migration_.set_state(v1::MIGRATION_STATE_CANCELLED);
    migration_.set_status_message("cancelled on request");
    ++version_;
  }
  *response->mutable_migration() = migration_;
  return grpc::Status::OK;
}

std::vector<std::string> FakeDaemon::calls() const {
  absl::MutexLock lock(&mutex_);
  return calls_;
}

grpc::Status FakeDaemon::Note(const std::string& call,
                              const std::string& migration_id) {
  absl::MutexLock lock(&mutex_);
  if (!IsKnown(migration_id)) return NotFound();
  calls_.push_back(call);
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::PauseMigration(
    grpc::ServerContext*, const v1::PauseMigrationRequest* request,
    v1::PauseMigrationResponse* response) {
  *response->mutable_migration() = migration();
  return Note("pause", request->migration_id());
}

grpc::Status FakeDaemon::RecoverMigration(
    grpc::ServerContext*, const v1::RecoverMigrationRequest* request,
    v1::RecoverMigrationResponse* response) {
  *response->mutable_migration() = migration();
  return Note(absl::StrCat("recover ", request->source_address()),
              request->migration_id());
}

grpc::Status FakeDaemon::SetLimits(grpc::ServerContext*,
                                   const v1::SetLimitsRequest* request,
                                   v1::SetLimitsResponse* response) {
  *response->mutable_migration() = migration();
  return Note(absl::StrCat("limit ", request->bulk_limit_bytes_per_second()),
              request->migration_id());
}

grpc::Status FakeDaemon::AbandonMigration(
    grpc::ServerContext*, const v1::AbandonMigrationRequest* request,
    v1::AbandonMigrationResponse* response) {
  *response->mutable_migration() = migration();
  return Note(absl::StrCat("abandon ", request->lose_missing_pages()),
              request->migration_id());
}

grpc::Status FakeDaemon::DeleteMigration(
    grpc::ServerContext*, const v1::DeleteMigrationRequest* request,
    v1::DeleteMigrationResponse*) {
  return Note("delete", request->migration_id());
}

}  // namespace postcopy
