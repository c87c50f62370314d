// One daemon's control plane, as this program calls it.
#ifndef CMD_POSTCOPYCTL_DAEMON_CLIENT_H_
#define CMD_POSTCOPYCTL_DAEMON_CLIENT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/security/client_security.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "postcopy/v1/common.pb.h"
#include "postcopy/v1/migration.grpc.pb.h"

namespace postcopy {

// How long a daemon may take to answer a call that only looks or notes down.
inline constexpr absl::Duration kCallTimeout = absl::Seconds(10);

// Calls block. Every error says which daemon it comes from and keeps the
// daemon's code: UNAVAILABLE if it cannot be reached. Thread-safe.
class DaemonClient {
 public:
  // Connects lazily. `role` is for messages only. If `security` has no way to
  // dial `address`, Connect says so, and all other calls fail.
  DaemonClient(v1::Role role, std::string address,
               const ClientSecurity& security,
               absl::Duration call_timeout = kCallTimeout);

  v1::Role role() const { return role_; }
  const std::string& address() const { return address_; }
  // "the source daemon (pageserverd) at 10.0.0.1:7100".
  std::string Description() const;

  // Connects now. Fails at the first refusal: whoever asks waits for an answer
  // and not for the daemon to be started.
  absl::Status Connect();

  absl::StatusOr<v1::Migration> Create(
      const v1::CreateMigrationRequest& request);
  absl::StatusOr<v1::Migration> Get(const std::string& migration_id);
  absl::StatusOr<std::vector<v1::Migration>> List();
  absl::StatusOr<v1::Migration> Cancel(const std::string& request_id,
                                       const std::string& migration_id);

  absl::StatusOr<v1::Migration> Pause(const std::string& request_id,
                                      const std::string& migration_id);
  // `source_address` may be empty.
  absl::StatusOr<v1::Migration> Recover(const std::string& request_id,
                                        const std::string& migration_id,
                                        const std::string& source_address);
  absl::StatusOr<v1::Migration> SetLimits(const std::string& request_id,
                                          const std::string& migration_id,
                                          uint64_t bulk_bytes_per_second);
  // May take as long as poisoning all of the VM's memory does.
  absl::StatusOr<v1::Migration> Abandon(const std::string& request_id,
                                        const std::string& migration_id);
  absl::Status Delete(const std::string& request_id,
                      const std::string& migration_id);

  // What the daemon says of a service by gRPC's health checking, "SERVING" for
  // one; `service` empty: the daemon as a whole. At most 127 bytes. NOT_FOUND:
  // it does not know the service.
  absl::StatusOr<std::string> Health(const std::string& service);

  // `context` allows another thread to TryCancel() the call.
  absl::StatusOr<v1::Migration> SwitchOver(const std::string& request_id,
                                           const std::string& migration_id,
                                           absl::Duration timeout,
                                           grpc::ClientContext* context);

  // Calls `receive` with each message until the stream ends, and returns why it
  // ended. `context` as above; it also carries the deadline, if any.
  absl::Status Watch(const std::string& migration_id,
                     absl::Duration progress_interval,
                     absl::FunctionRef<void(const v1::Migration&)> receive,
                     grpc::ClientContext* context);

 private:
  absl::Status Explain(const grpc::Status& status) const;
  // Why it cannot be reached, as gRPC says in answer to a call.
  absl::Status WhyUnreachable();
  // Makes a call of Request and Response, within `timeout`.
  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (v1::MigrationService::Stub::*method)(
                        grpc::ClientContext*, const Request&, Response*),
                    const Request& request, absl::Duration timeout,
                    Response* response);
  // The same where the answer is the migration.
  template <typename Request, typename Response>
  absl::StatusOr<v1::Migration> Change(
      grpc::Status (v1::MigrationService::Stub::*method)(grpc::ClientContext*,
                                                         const Request&,
                                                         Response*),
      const Request& request);

  const v1::Role role_;
  const std::string address_;
  const absl::Duration call_timeout_;
  const absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::MigrationService::Stub> stub_;
};

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_DAEMON_CLIENT_H_
