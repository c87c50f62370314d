#include "cmd/postcopyctl/daemon_client.h"

#include <chrono>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/channel_arguments.h"
#include "grpcpp/support/slice.h"
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

// Every page of 16 TiB takes a system call.
constexpr absl::Duration kAbandonTimeout = absl::Hours(2);

template <typename Request>
Request RequestFor(const std::string& request_id,
                   const std::string& migration_id) {
  Request request;
  request.set_request_id(request_id);
  request.set_migration_id(migration_id);
  return request;
}

// Of a HealthCheckResponse, whose only field is the enum status = 1.
std::string HealthName(const grpc::ByteBuffer& response) {
  constexpr const char* kNames[] = {"UNKNOWN", "SERVING", "NOT_SERVING",
                                    "SERVICE_UNKNOWN"};
  grpc::Slice slice;
  // Zero, the default, is not sent.
  if (!response.DumpToSingleSlice(&slice).ok() || slice.size() == 0) {
    return kNames[0];
  }
  if (slice.size() != 2 || slice.begin()[0] != 0x08 || slice.begin()[1] > 3) {
    return "not understood";
  }
  return kNames[slice.begin()[1]];
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

template <typename Request, typename Response>
absl::Status DaemonClient::Call(
    grpc::Status (v1::MigrationService::Stub::*method)(grpc::ClientContext*,
                                                       const Request&,
                                                       Response*),
    const Request& request, absl::Duration timeout, Response* response) {
  grpc::ClientContext context;
  context.set_deadline(After(timeout));
  return Explain((stub_.get()->*method)(&context, request, response));
}

template <typename Request, typename Response>
absl::StatusOr<v1::Migration> DaemonClient::Change(
    grpc::Status (v1::MigrationService::Stub::*method)(grpc::ClientContext*,
                                                       const Request&,
                                                       Response*),
    const Request& request) {
  Response response;
  absl::Status status = Call(method, request, call_timeout_, &response);
  if (!status.ok()) return status;
  return std::move(*response.mutable_migration());
}

absl::StatusOr<v1::Migration> DaemonClient::Create(
    const v1::CreateMigrationRequest& request) {
  return Change(&v1::MigrationService::Stub::CreateMigration, request);
}

absl::StatusOr<v1::Migration> DaemonClient::Get(
    const std::string& migration_id) {
  v1::GetMigrationRequest request;
  request.set_migration_id(migration_id);
  return Change(&v1::MigrationService::Stub::GetMigration, request);
}

absl::StatusOr<std::vector<v1::Migration>> DaemonClient::List() {
  v1::ListMigrationsResponse response;
  absl::Status status =
      Call(&v1::MigrationService::Stub::ListMigrations,
           v1::ListMigrationsRequest(), call_timeout_, &response);
  if (!status.ok()) return status;
  return std::vector<v1::Migration>(response.migrations().begin(),
                                    response.migrations().end());
}

absl::StatusOr<v1::Migration> DaemonClient::Cancel(
    const std::string& request_id, const std::string& migration_id) {
  return Change(
      &v1::MigrationService::Stub::CancelMigration,
      RequestFor<v1::CancelMigrationRequest>(request_id, migration_id));
}

absl::StatusOr<v1::Migration> DaemonClient::Pause(
    const std::string& request_id, const std::string& migration_id) {
  return Change(
      &v1::MigrationService::Stub::PauseMigration,
      RequestFor<v1::PauseMigrationRequest>(request_id, migration_id));
}

absl::StatusOr<v1::Migration> DaemonClient::Recover(
    const std::string& request_id, const std::string& migration_id,
    const std::string& source_address) {
  auto request =
      RequestFor<v1::RecoverMigrationRequest>(request_id, migration_id);
  request.set_source_address(source_address);
  return Change(&v1::MigrationService::Stub::RecoverMigration, request);
}

absl::StatusOr<v1::Migration> DaemonClient::SetLimits(
    const std::string& request_id, const std::string& migration_id,
    uint64_t bulk_bytes_per_second) {
  auto request = RequestFor<v1::SetLimitsRequest>(request_id, migration_id);
  request.set_bulk_limit_bytes_per_second(bulk_bytes_per_second);
  return Change(&v1::MigrationService::Stub::SetLimits, request);
}

absl::StatusOr<v1::Migration> DaemonClient::Abandon(
    const std::string& request_id, const std::string& migration_id) {
  auto request =
      RequestFor<v1::AbandonMigrationRequest>(request_id, migration_id);
  request.set_lose_missing_pages(true);
  v1::AbandonMigrationResponse response;
  absl::Status status = Call(&v1::MigrationService::Stub::AbandonMigration,
                             request, kAbandonTimeout, &response);
  if (!status.ok()) return status;
  return std::move(*response.mutable_migration());
}

absl::Status DaemonClient::Delete(const std::string& request_id,
                                  const std::string& migration_id) {
  v1::DeleteMigrationResponse response;
  return Call(&v1::MigrationService::Stub::DeleteMigration,
              RequestFor<v1::DeleteMigrationRequest>(request_id, migration_id),
              call_timeout_, &response);
}

// grpc.health.v1 is two small messages, whose code no package of the gRPC
// library brings along.
absl::StatusOr<std::string> DaemonClient::Health(const std::string& service) {
  std::string request;
  if (!service.empty()) {
    // string service = 1.
    request = absl::StrCat(
        "\n", std::string(1, static_cast<char>(service.size())), service);
  }
  grpc::Slice slice(request);
  grpc::ClientContext context;
  context.set_deadline(After(call_timeout_));
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(channel_);
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                    grpc::ByteBuffer(&slice, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) return Explain(status);
  return HealthName(response);
}

absl::StatusOr<v1::Migration> DaemonClient::SwitchOver(
    const std::string& request_id, const std::string& migration_id,
    absl::Duration timeout, grpc::ClientContext* context) {
  context->set_deadline(After(timeout));
  v1::SwitchOverResponse response;
  absl::Status status = Explain(stub_->SwitchOver(
      context, RequestFor<v1::SwitchOverRequest>(request_id, migration_id),
      &response));
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
