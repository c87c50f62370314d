#include "cmd/daemon/grpc_listener.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <chrono>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

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

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcListener>> GrpcListener::Create(
    const Options& options, absl::Span<grpc::Service* const> services) {
  // Both are process-wide and take effect in servers built after them.
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(),
                           &port);
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
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options.address,
                     ": is the port taken by another process, or the address "
                     "not one of this host?"));
  }
  return std::unique_ptr<GrpcListener>(
      new GrpcListener(std::move(server), WithPort(options.address, port)));
}

void GrpcListener::Shutdown() {
  server_->Shutdown(std::chrono::system_clock::now() + kGracePeriod);
}

void ChooseGrpcPolling() {
  ::setenv("GRPC_POLL_STRATEGY", "poll", /*replace=*/0);
}

}  // namespace postcopy
