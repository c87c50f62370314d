// A daemon for tests: the control plane of one side over real gRPC on loopback,
// with one migration whose life the test writes.
#ifndef CMD_POSTCOPYCTL_FAKE_DAEMON_H_
#define CMD_POSTCOPYCTL_FAKE_DAEMON_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/server.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"
#include "grpcpp/support/sync_stream.h"
#include "postcopy/v1/common.pb.h"
#include "postcopy/v1/migration.grpc.pb.h"

namespace postcopy {

// Keeps the contract of MigrationService for one migration. Thread-safe, but
// for the hooks: set those before the first call.
class FakeDaemon : public v1::MigrationService::Service {
 public:
  explicit FakeDaemon(v1::Role role);
  ~FakeDaemon() override;

  std::string address() const;

  // --- Hooks: an error is the answer, OK lets the default happen. ----------

  std::function<grpc::Status()> on_create = [] { return grpc::Status::OK; };
  std::function<grpc::Status()> on_switch_over = on_create;
  std::function<grpc::Status()> on_cancel = on_create;

  // --- The script's side ---------------------------------------------------

  void Change(const std::function<void(v1::Migration*)>& change);
  void SetState(v1::MigrationState state, const std::string& message = "");
  // Every open watch stream ends with `status`; new ones are served.
  void BreakStreams(const grpc::Status& status);
  // From here on watch streams end at once with UNAVAILABLE.
  void RefuseStreams();
  // The migration is not known any more.
  void Forget();
  // No further calls are answered: the daemon is gone.
  void Stop();

  // Each waits until it is so. False: it did not happen in 20 seconds.
  bool AwaitCreated();
  bool AwaitSwitchOverCall();
  bool AwaitCancelled();
  bool AwaitStreams(int opened);

  // --- What was asked ------------------------------------------------------

  v1::CreateMigrationRequest create_request() const;
  std::vector<std::string> switch_over_request_ids() const;
  int cancel_calls() const;
  // What the other calls asked for: "pause", "limit 1048576", ...
  std::vector<std::string> calls() const;
  v1::Migration migration() const;

  // --- MigrationService ----------------------------------------------------

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
  // Answers OK once the script has brought the state to POSTCOPY or beyond.
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
  // Notes `call`; the answer.
  grpc::Status Note(const std::string& call, const std::string& migration_id);
  bool Await(const std::function<bool()>& condition);
  bool IsKnown(const std::string& migration_id) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const v1::Role role_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;

  mutable absl::Mutex mutex_;
  bool known_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool refuse_streams_ ABSL_GUARDED_BY(mutex_) = false;
  v1::Migration migration_ ABSL_GUARDED_BY(mutex_);
  // Counts changes of migration_, for the streams.
  int version_ ABSL_GUARDED_BY(mutex_) = 0;
  // Counts BreakStreams().
  int breaks_ ABSL_GUARDED_BY(mutex_) = 0;
  grpc::Status break_status_ ABSL_GUARDED_BY(mutex_);
  int streams_opened_ ABSL_GUARDED_BY(mutex_) = 0;
  int cancel_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  v1::CreateMigrationRequest create_request_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> calls_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> switch_over_request_ids_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_FAKE_DAEMON_H_
