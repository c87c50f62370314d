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

// Runs `act` on a migration and describes what came of it.
template <typename Request, typename Response, typename Act>
grpc::Status Do(MigrationTable& table, const Request& request,
                Response* response, Act act) {
  absl::Status status = CheckRequestId(request.request_id());
  if (!status.ok()) return ToGrpc(status);
  absl::StatusOr<std::shared_ptr<MigrationSide>> side =
      table.Find(request.migration_id());
  if (!side.ok()) return ToGrpc(side.status());
  if (status = act(**side); !status.ok()) return ToGrpc(status);
  absl::StatusOr<v1::Migration> migration =
      table.Describe(request.migration_id());
  if (!migration.ok()) return ToGrpc(migration.status());
  *response->mutable_migration() = *std::move(migration);
  return grpc::Status::OK;
}

}  // namespace

grpc::Status MigrationService::CreateMigration(
    grpc::ServerContext* /*context*/, const v1::CreateMigrationRequest* request,
    v1::CreateMigrationResponse* response) {
  absl::StatusOr<v1::Migration> migration = table_->Create(*request);
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
  absl::StatusOr<int64_t> interval =
      ProgressNanos(request->progress_interval_ms());
  if (!interval.ok()) return ToGrpc(interval.status());
  absl::StatusOr<std::shared_ptr<MigrationSide>> side =
      table_->Find(request->migration_id());
  if (!side.ok()) return ToGrpc(side.status());

  while (!context->IsCancelled() &&
         !stopping_.load(std::memory_order_relaxed)) {
    const uint64_t seen = (*side)->version();
    // Asked before it is described: the last message then shows the end.
    const bool ended = (*side)->ended();
    absl::StatusOr<v1::Migration> migration =
        table_->Describe(request->migration_id());
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
  return Do(*table_, *request, response,
            [](MigrationSide& side) { return side.SwitchOver(); });
}

grpc::Status MigrationService::CancelMigration(
    grpc::ServerContext* /*context*/, const v1::CancelMigrationRequest* request,
    v1::CancelMigrationResponse* response) {
  return Do(*table_, *request, response,
            [](MigrationSide& side) { return side.Cancel(); });
}

}  // namespace postcopy
