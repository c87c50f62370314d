// A gRPC server of a daemon.
#ifndef CMD_DAEMON_GRPC_LISTENER_H_
#define CMD_DAEMON_GRPC_LISTENER_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cmd/daemon/unix_door.h"
#include "cmd/security/port_security.h"

namespace postcopy {

// Serves some services at one address. Shuts down at destruction.
class GrpcListener {
 public:
  struct Options {
    // host:port, where port 0 lets the kernel choose; or unix:/path.
    std::string address;
    // Who gets in.
    PortSecurity security;
    // The largest message taken from a peer.
    int request_bytes_max = 64 << 10;
    // Threads for calls that are under way; a call beyond is refused with
    // RESOURCE_EXHAUSTED.
    int threads_max = 1024;
    // Services that the health service knows by name ("postcopy.v1.X"), beside
    // "", which stands for all.
    std::vector<std::string> health_names;
    // Serve channelz too, which shows connections and calls of this whole
    // process. gRPC then serves it from every server that is made later in this
    // process: make those that must not have it before.
    bool channelz = false;
  };

  // Listens. The services outlive this. UNAVAILABLE, with what to do, if the
  // address cannot be used, or as of ListeningSocket::Create;
  // FAILED_PRECONDITION for a TCP address without credentials.
  static absl::StatusOr<std::unique_ptr<GrpcListener>> Create(
      const Options& options, absl::Span<grpc::Service* const> services);

  ~GrpcListener() { Shutdown(); }

  // With the real port.
  const std::string& address() const { return address_; }

  // What the health service says of all its names: SERVING or NOT_SERVING. At
  // first the former. Any thread.
  void SetServing(bool serving);

  // Ends calls: those that do not end by themselves soon are cancelled.
  void Shutdown();

 private:
  GrpcListener(PortSecurity security, std::unique_ptr<grpc::Server> server,
               std::string address)
      : security_(std::move(security)),
        server_(std::move(server)),
        address_(std::move(address)) {}

  // Lets peers of a Unix socket in.
  absl::Status OpenDoor();

  // The server uses it to its end.
  const PortSecurity security_;
  const std::unique_ptr<grpc::Server> server_;
  const std::string address_;
  // Null at TCP.
  std::unique_ptr<UnixDoor> door_;
};

// To be called before anything else of gRPC: chooses how it polls. The default
// has one thread of the process poll for all of its connections, so that an
// urgent page would wait behind bulk ones (docs/adr/0003). Does nothing if
// GRPC_POLL_STRATEGY is set.
void ChooseGrpcPolling();

}  // namespace postcopy

#endif  // CMD_DAEMON_GRPC_LISTENER_H_
