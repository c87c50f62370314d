#include "cmd/postcopyctl/daemon_client.h"

#include <chrono>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "grpcpp/support/sync_stream.h"

namespace postcopy {
namespace {

std::shared_ptr<grpc::Channel> MakeChannel(
    const std::string& address,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  // A daemon that is back should be seen at once, not after gRPC's default of
  // up to two minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // An http_proxy meant for the web must not see the control plane.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

std::chrono::system_clock::time_point After(absl::Duration timeout) {
  return absl::ToChronoTime(absl::Now() + timeout);
}

}  // namespace

DaemonClient::DaemonClient(v1::Role role, std::string address,
                           const ClientSecurity& security,
                           absl::Duration call_timeout)
    : role_(role),
      address_(std::move(address)),
      call_timeout_(call_timeout),
      credentials_(security.CredentialsFor(address_)),
      // Without credentials gRPC gives a channel that fails every call.
      channel_(MakeChannel(address_, credentials_.value_or(nullptr))),
      stub_(v1::MigrationService::NewStub(channel_)) {}

std::string DaemonClient::Description() const {
  return absl::StrCat(role_ == v1::ROLE_SOURCE
                          ? "the source daemon (pageserverd) at "
                          : "the destination daemon (faultd) at ",
                      address_);
}

absl::Status DaemonClient::WhyUnreachable() {
  grpc::ClientContext context;
  context.set_deadline(After(call_timeout_));
  v1::ListMigrationsResponse response;
  absl::Status status = Explain(
      stub_->ListMigrations(&context, v1::ListMigrationsRequest(), &response));
  if (absl::IsUnavailable(status)) return status;
  // It came back in between, or answers too late.
  return absl::UnavailableError(absl::StrCat("cannot reach ", Description()));
}

absl::Status DaemonClient::Connect() {
  if (!credentials_.ok()) return credentials_.status();
  auto deadline = After(call_timeout_);
  grpc_connectivity_state state = channel_->GetState(true);
  while (state != GRPC_CHANNEL_READY) {
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE ||
        !channel_->WaitForStateChange(state, deadline)) {
      return WhyUnreachable();
    }
    state = channel_->GetState(true);
  }
  return absl::OkStatus();
}

absl::Status DaemonClient::Explain(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  auto code = static_cast<absl::StatusCode>(status.error_code());
  absl::string_view verb =
      code == absl::StatusCode::kUnavailable ? "cannot reach " : "";
  return absl::Status(
      code, absl::StrCat(verb, Description(), verb.empty() ? " says: " : ": ",
                         status.error_message()));
}

absl::StatusOr<v1::Migration> DaemonClient::Create(
    const v1::CreateMigrationRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(After(call_timeout_));
  v1::CreateMigrationResponse response;
  absl::Status status =
      Explain(stub_->CreateMigration(&context, request, &response));
  if (!status.ok()) return status;
  return std::move(*response.mutable_migration());
}

absl::StatusOr<v1::Migration> DaemonClient::Get(
    const std::string& migration_id) {
  grpc::ClientContext context;
  context.set_deadline(After(call_timeout_));
  v1::GetMigrationRequest request;
  request.set_migration_id(migration_id);
  v1::GetMigrationResponse response;
  absl::Status status =
      Explain(stub_->GetMigration(&context, request, &response));
  if (!status.ok()) return status;
  return std::move(*response.mutable_migration());
}

absl::StatusOr<std::vector<v1::Migration>> DaemonClient::List() {
  grpc::ClientContext context;
  context.set_deadline(After(call_timeout_));
  v1::ListMigrationsResponse response;
  absl::Status status = Explain(
      stub_->ListMigrations(&context, v1::ListMigrationsRequest(), &response));
  if (!status.ok()) return status;
  return std::vector<v1::Migration>(response.migrations().begin(),
                                    response.migrations().end());
}

absl::StatusOr<v1::Migration> DaemonClient::Cancel(
    const std::string& request_id, const std::string& migration_id) {
  grpc::ClientContext context;
  context.set_deadline(After(call_timeout_));
  v1::CancelMigrationRequest request;
  request.set_request_id(request_id);
  request.set_migration_id(migration_id);
  v1::CancelMigrationResponse response;
  absl::Status status =
      Explain(stub_->CancelMigration(&context, request, &response));
  if (!status.ok()) return status;
  return std::move(*response.mutable_migration());
}

absl::StatusOr<v1::Migration> DaemonClient::SwitchOver(
    const std::string& request_id, const std::string& migration_id,
    absl::Duration timeout, grpc::ClientContext* context) {
  context->set_deadline(After(timeout));
  v1::SwitchOverRequest request;
  request.set_request_id(request_id);
  request.set_migration_id(migration_id);
  v1::SwitchOverResponse response;
  absl::Status status = Explain(stub_->SwitchOver(context, request, &response));
  if (!status.ok()) return status;
  return std::move(*response.mutable_migration());
}

absl::Status DaemonClient::Watch(
    const std::string& migration_id, absl::Duration progress_interval,
    absl::FunctionRef<void(const v1::Migration&)> receive,
    grpc::ClientContext* context) {
  v1::WatchMigrationRequest request;
  request.set_migration_id(migration_id);
  request.set_progress_interval_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(progress_interval)));
  std::unique_ptr<grpc::ClientReader<v1::WatchMigrationResponse>> reader =
      stub_->WatchMigration(context, request);
  v1::WatchMigrationResponse response;
  while (reader->Read(&response)) receive(response.migration());
  return Explain(reader->Finish());
}

}  // namespace postcopy
