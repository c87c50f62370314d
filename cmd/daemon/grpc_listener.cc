#include "cmd/daemon/grpc_listener.h"

#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_posix.h>

#include <chrono>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "cmd/security/client_security.h"

namespace postcopy {
namespace {

constexpr std::chrono::milliseconds kGracePeriod(200);

// Peers may ask this often whether the host is still there.
constexpr int kPingMillisMin = 1000;

// A peer's host that vanished without a word is noticed after this much
// silence, asked for once and waited for once.
constexpr int kKeepaliveMillis = 5000;

// "127.0.0.1:0" with the port that the kernel chose.
std::string WithPort(absl::string_view address, int port) {
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

// "/path" of "unix:/path" and of "unix:///path", which gRPC's clients take to
// be the same.
std::string PathOf(absl::string_view address) {
  absl::ConsumePrefix(&address, "unix:");
  if (absl::StartsWith(address, "///")) address.remove_prefix(2);
  return std::string(address);
}

absl::Status CannotListen(absl::string_view address) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", address,
                   ": is the port taken by another process, or the address "
                   "not one of this host?"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcListener>> GrpcListener::Create(
    const Options& options, absl::Span<grpc::Service* const> services) {
  const bool unix = IsUnixAddress(options.address);
  if (!unix && options.security.credentials == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        options.address, " has no credentials and so must not be served"));
  }
  // Both are process-wide and take effect in servers built after them.
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  if (options.channelz) grpc::channelz::experimental::InitChannelzService();

  grpc::ServerBuilder builder;
  int port = 0;
  if (!unix) {
    builder.AddListeningPort(options.address, options.security.credentials,
                             &port);
  }
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(options.request_bytes_max);
  // Otherwise a second daemon on the same port would silently take half of
  // the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kPingMillisMin);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMillis);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveMillis);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  grpc::ResourceQuota quota;
  quota.SetMaxThreads(options.threads_max);
  builder.SetResourceQuota(quota);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || (!unix && port == 0)) {
    return CannotListen(options.address);
  }
  for (const std::string& name : options.health_names) {
    server->GetHealthCheckService()->SetServingStatus(name, true);
  }
  std::unique_ptr<GrpcListener> listener(new GrpcListener(
      options.security, std::move(server),
      unix ? options.address : WithPort(options.address, port)));
  if (unix) {
    if (absl::Status s = listener->OpenDoor(); !s.ok()) return s;
  }
  return listener;
}

absl::Status GrpcListener::OpenDoor() {
  auto door = UnixDoor::Create({.path = PathOf(address_),
                                .allowed_uids = security_.uids,
                                .let_in =
                                    [server = server_.get()](UniqueFd fd) {
                                      grpc::AddInsecureChannelFromFd(
                                          server, fd.Release());
                                    },
                                .log = security_.log});
  if (!door.ok()) return door.status();
  door_ = *std::move(door);
  return absl::OkStatus();
}

void GrpcListener::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(serving);
}

void GrpcListener::Shutdown() {
  if (door_ != nullptr) door_->Stop();
  server_->Shutdown(std::chrono::system_clock::now() + kGracePeriod);
}

void ChooseGrpcPolling() {
  ::setenv("GRPC_POLL_STRATEGY", "poll", /*replace=*/0);
}

}  // namespace postcopy
