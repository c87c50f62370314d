// The control plane's gRPC service, the same on both daemons.
#ifndef CMD_CONTROL_MIGRATION_SERVICE_H_
#define CMD_CONTROL_MIGRATION_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <atomic>

#include "cmd/control/migration_table.h"
#include "cmd/control/request_log.h"
#include "postcopy/v1/migration.grpc.pb.h"

namespace postcopy {

// Watches at a time. Each has a thread, also while its client reads nothing.
inline constexpr int kWatchesMax = 256;

// Answers for the migrations of a table.
class MigrationService final : public v1::MigrationService::Service {
 public:
  // `table` outlives this.
  explicit MigrationService(MigrationTable* table) : table_(table) {}

  // Ends every Watch soon; for the end of the daemon. Any thread.
  void StopWatches() { stopping_.store(true, std::memory_order_relaxed); }

  grpc::Status CreateMigration(grpc::ServerContext* context,
                               const v1::CreateMigrationRequest* request,
                               v1::CreateMigrationResponse* response) override;
  grpc::Status GetMigration(grpc::ServerContext* context,
                            const v1::GetMigrationRequest* request,
                            v1::GetMigrationResponse* response) override;
  grpc::Status ListMigrations(grpc::ServerContext* context,
                              const v1::ListMigrationsRequest* request,
                              v1::ListMigrationsResponse* response) override;
  grpc::Status WatchMigration(
      grpc::ServerContext* context, const v1::WatchMigrationRequest* request,
      grpc::ServerWriter<v1::WatchMigrationResponse>* writer) override;
  grpc::Status SwitchOver(grpc::ServerContext* context,
                          const v1::SwitchOverRequest* request,
                          v1::SwitchOverResponse* response) override;
  grpc::Status CancelMigration(grpc::ServerContext* context,
                               const v1::CancelMigrationRequest* request,
                               v1::CancelMigrationResponse* response) override;
  grpc::Status PauseMigration(grpc::ServerContext* context,
                              const v1::PauseMigrationRequest* request,
                              v1::PauseMigrationResponse* response) override;
  grpc::Status RecoverMigration(
      grpc::ServerContext* context, const v1::RecoverMigrationRequest* request,
      v1::RecoverMigrationResponse* response) override;
  grpc::Status SetLimits(grpc::ServerContext* context,
                         const v1::SetLimitsRequest* request,
                         v1::SetLimitsResponse* response) override;
  grpc::Status AbandonMigration(
      grpc::ServerContext* context, const v1::AbandonMigrationRequest* request,
      v1::AbandonMigrationResponse* response) override;
  grpc::Status DeleteMigration(grpc::ServerContext* context,
                               const v1::DeleteMigrationRequest* request,
                               v1::DeleteMigrationResponse* response) override;

 private:
  // Runs `act`, a function of the migration's side that returns a status,
  // unless the request has been carried out before; and describes what came of
  // it.
  template <typename Request, typename Response, typename Act>
  grpc::Status Do(const Request& request, Response* response, Act act);
  grpc::Status Watch(grpc::ServerContext* context,
                     const v1::WatchMigrationRequest& request,
                     grpc::ServerWriter<v1::WatchMigrationResponse>* writer);

  MigrationTable* const table_;
  RequestLog requests_;
  std::atomic<int> watches_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace postcopy

#endif  // CMD_CONTROL_MIGRATION_SERVICE_H_
