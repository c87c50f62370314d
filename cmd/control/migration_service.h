// The control plane's gRPC service, the same on both daemons.
#ifndef CMD_CONTROL_MIGRATION_SERVICE_H_
#define CMD_CONTROL_MIGRATION_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <atomic>

#include "cmd/control/migration_table.h"
#include "postcopy/v1/migration.grpc.pb.h"

namespace postcopy {

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

 private:
  MigrationTable* const table_;
  std::atomic<bool> stopping_{false};
};

}  // namespace postcopy

#endif  // CMD_CONTROL_MIGRATION_SERVICE_H_
