#include "cmd/control/migration_service.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cmd/daemon/grpc_status.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/ram_layout.h"

namespace postcopy {
namespace {

constexpr uint32_t kProgressMillisMin = 20;
constexpr uint32_t kProgressMillisMax = 10'000;
constexpr uint32_t kProgressMillisDefault = 500;

// How long a Watch may be blind to a client that has gone.
constexpr int64_t kWatchNanosMax = 200 * kNanosPerMilli;

absl::Status CheckRequestId(const std::string& request_id) {
  if (IsValidName(request_id)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("request_id must be 1 to ", kMaxNameBytes,
                   " characters of [A-Za-z0-9._-]"));
}

absl::StatusOr<int64_t> ProgressNanos(uint32_t millis) {
  if (millis == 0) millis = kProgressMillisDefault;
  if (millis < kProgressMillisMin || millis > kProgressMillisMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("progress_interval_ms must be ", kProgressMillisMin,
                     " to ", kProgressMillisMax, ", not ", millis));
  }
  return millis * kNanosPerMilli;
}

// Counts a watch as long as it lives.
class CountedWatch {
 public:
  explicit CountedWatch(std::atomic<int>* count)
      : count_(*count), number_(count_.fetch_add(1) + 1) {}
  ~CountedWatch() { count_.fetch_sub(1); }
  bool allowed() const { return number_ <= kWatchesMax; }

 private:
  std::atomic<int>& count_;
  const int number_;
};

}  // namespace

template <typename Request, typename Response, typename Act>
grpc::Status MigrationService::Do(const Request& request, Response* response,
                                  Act act) {
  absl::Status status = CheckRequestId(request.request_id());
  if (!status.ok()) return ToGrpc(status);
  absl::StatusOr<RequestLog::Answer> answer =
      requests_.Begin(request.request_id(), request);
  if (!answer.ok()) return ToGrpc(answer.status());
  if (*answer == RequestLog::Answer::kNew) {
    absl::StatusOr<std::shared_ptr<MigrationSide>> side =
        table_->Find(request.migration_id());
    status = side.ok() ? act(**side) : side.status();
    requests_.End(request.request_id(), status.ok());
    if (!status.ok()) return ToGrpc(status);
  }
  absl::StatusOr<v1::Migration> migration =
      table_->Describe(request.migration_id());
  if (!migration.ok()) return ToGrpc(migration.status());
  *response->mutable_migration() = *std::move(migration);
  return grpc::Status::OK;
}

grpc::Status MigrationService::CreateMigration(
    grpc::ServerContext* /*context*/, const v1::CreateMigrationRequest* request,
    v1::CreateMigrationResponse* response) {
  absl::Status status = CheckRequestId(request->request_id());
  if (!status.ok()) return ToGrpc(status);
  absl::StatusOr<v1::Migration> migration;
  absl::StatusOr<RequestLog::Answer> answer =
      requests_.Begin(request->request_id(), *request);
  if (!answer.ok()) return ToGrpc(answer.status());
  if (*answer == RequestLog::Answer::kNew) {
    migration = table_->Create(*request);
    // A look that creates nothing may be repeated.
    requests_.End(request->request_id(),
                  migration.ok() && !request->validate_only());
  } else {
    migration = table_->Describe(request->migration_id());
    if (!migration.ok()) {
      return ToGrpc(absl::NotFoundError(absl::StrCat(
          "migration \"", request->migration_id(),
          "\" was created by this request and is forgotten: to create another, "
          "choose another request_id")));
    }
  }
  if (!migration.ok()) return ToGrpc(migration.status());
  *response->mutable_migration() = *std::move(migration);
  return grpc::Status::OK;
}

grpc::Status MigrationService::GetMigration(
    grpc::ServerContext* /*context*/, const v1::GetMigrationRequest* request,
    v1::GetMigrationResponse* response) {
  absl::StatusOr<v1::Migration> migration =
      table_->Describe(request->migration_id());
  if (!migration.ok()) return ToGrpc(migration.status());
  *response->mutable_migration() = *std::move(migration);
  return grpc::Status::OK;
}

grpc::Status MigrationService::ListMigrations(
    grpc::ServerContext* /*context*/,
    const v1::ListMigrationsRequest* /*request*/,
    v1::ListMigrationsResponse* response) {
  for (v1::Migration& migration : table_->List()) {
    *response->add_migrations() = std::move(migration);
  }
  return grpc::Status::OK;
}

grpc::Status MigrationService::WatchMigration(
    grpc::ServerContext* context, const v1::WatchMigrationRequest* request,
    grpc::ServerWriter<v1::WatchMigrationResponse>* writer) {
  const CountedWatch watch(&watches_);
  if (!watch.allowed()) {
    return ToGrpc(absl::ResourceExhaustedError(
        absl::StrCat("this daemon has ", kWatchesMax,
                     " watches already, which is its limit: end some")));
  }
  return Watch(context, *request, writer);
}

grpc::Status MigrationService::Watch(
    grpc::ServerContext* context, const v1::WatchMigrationRequest& request,
    grpc::ServerWriter<v1::WatchMigrationResponse>* writer) {
  absl::StatusOr<int64_t> interval =
      ProgressNanos(request.progress_interval_ms());
  if (!interval.ok()) return ToGrpc(interval.status());
  absl::StatusOr<std::shared_ptr<MigrationSide>> side =
      table_->Find(request.migration_id());
  if (!side.ok()) return ToGrpc(side.status());

  while (!context->IsCancelled() &&
         !stopping_.load(std::memory_order_relaxed)) {
    const uint64_t seen = (*side)->version();
    // Asked before it is described: the last message then shows the end.
    const bool ended = (*side)->ended();
    absl::StatusOr<v1::Migration> migration =
        table_->Describe(request.migration_id());
    if (!migration.ok()) return ToGrpc(migration.status());
    v1::WatchMigrationResponse response;
    *response.mutable_migration() = *std::move(migration);
    if (!writer->Write(response) || ended) break;
    for (int64_t left = *interval;
         left > 0 && (*side)->version() == seen && !context->IsCancelled() &&
         !stopping_.load(std::memory_order_relaxed);
         left -= kWatchNanosMax) {
      (*side)->WaitForChange(seen, std::min(left, kWatchNanosMax));
    }
  }
  return grpc::Status::OK;
}

grpc::Status MigrationService::SwitchOver(grpc::ServerContext* /*context*/,
                                          const v1::SwitchOverRequest* request,
                                          v1::SwitchOverResponse* response) {
  return Do(*request, response,
            [](MigrationSide& side) { return side.SwitchOver(); });
}

grpc::Status MigrationService::CancelMigration(
    grpc::ServerContext* /*context*/, const v1::CancelMigrationRequest* request,
    v1::CancelMigrationResponse* response) {
  return Do(*request, response,
            [](MigrationSide& side) { return side.Cancel(); });
}

grpc::Status MigrationService::PauseMigration(
    grpc::ServerContext* /*context*/, const v1::PauseMigrationRequest* request,
    v1::PauseMigrationResponse* response) {
  return Do(*request, response,
            [](MigrationSide& side) { return side.Pause(); });
}

grpc::Status MigrationService::RecoverMigration(
    grpc::ServerContext* /*context*/,
    const v1::RecoverMigrationRequest* request,
    v1::RecoverMigrationResponse* response) {
  return Do(*request, response, [&](MigrationSide& side) {
    absl::Status valid = CheckSourceAddress(request->source_address());
    return valid.ok() ? side.Recover(request->source_address()) : valid;
  });
}

grpc::Status MigrationService::SetLimits(grpc::ServerContext* /*context*/,
                                         const v1::SetLimitsRequest* request,
                                         v1::SetLimitsResponse* response) {
  return Do(*request, response, [&](MigrationSide& side) {
    const uint64_t limit = request->bulk_limit_bytes_per_second();
    absl::Status valid = CheckBulkLimit(limit);
    return valid.ok() ? side.SetBulkLimit(limit) : valid;
  });
}

grpc::Status MigrationService::AbandonMigration(
    grpc::ServerContext* /*context*/,
    const v1::AbandonMigrationRequest* request,
    v1::AbandonMigrationResponse* response) {
  return Do(*request, response, [&](MigrationSide& side) -> absl::Status {
    if (request->lose_missing_pages()) return side.Abandon();
    return absl::InvalidArgumentError(
        "lose_missing_pages must be true: the guest gets SIGBUS at each page "
        "that is missing, for good");
  });
}

grpc::Status MigrationService::DeleteMigration(
    grpc::ServerContext* /*context*/, const v1::DeleteMigrationRequest* request,
    v1::DeleteMigrationResponse* /*response*/) {
  absl::Status status = CheckRequestId(request->request_id());
  if (!status.ok()) return ToGrpc(status);
  absl::StatusOr<RequestLog::Answer> answer =
      requests_.Begin(request->request_id(), *request);
  if (!answer.ok()) return ToGrpc(answer.status());
  if (*answer == RequestLog::Answer::kDone) return grpc::Status::OK;
  status = table_->Delete(request->migration_id());
  requests_.End(request->request_id(), status.ok());
  return ToGrpc(status);
}

}  // namespace postcopy
