#include "cmd/faultreplay/echo_server.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <list>
#include <thread>
#include <utility>

#include "cmd/daemon/grpc_listener.h"
#include "cmd/faultreplay/loopback.h"
#include "postcopy/v1/data_plane.grpc.pb.h"

namespace postcopy {
namespace {

constexpr int kPollMillis = 50;
constexpr uint64_t kEchoRunPages = 64;

class TcpServer final : public EchoServer {
 public:
  TcpServer(UniqueFd listener, uint16_t port, const SourceMemory* memory)
      : listener_(std::move(listener)),
        port_(port),
        memory_(*memory),
        thread_([this] { Run(); }) {}

  ~TcpServer() override {
    stop_.store(true);
    thread_.join();
    for (Connection& connection : connections_) {
      ::shutdown(connection.fd.get(), SHUT_RDWR);
      connection.thread.join();
    }
  }

  std::string address() const override { return LoopbackAddress(port_); }

 private:
  struct Connection {
    UniqueFd fd;
    std::thread thread;
  };

  void Run() {
    while (!stop_.load()) {
      pollfd waited = {listener_.get(), POLLIN, 0};
      if (::poll(&waited, 1, kPollMillis) <= 0) continue;
      UniqueFd fd = AcceptConnection(listener_.get());
      if (!fd.valid()) continue;
      Connection& connection = connections_.emplace_back();
      connection.fd = std::move(fd);
      connection.thread =
          std::thread([this, at = connection.fd.get()] { Serve(at); });
    }
  }

  void Serve(int fd) const {
    EchoRequest request;
    while (ReceiveAll(fd, &request, sizeof(request)) &&
           request.page < memory_.pages().value() &&
           SendAll(fd, memory_.PageAt(PageIndex(request.page)), kPageSize)) {
    }
  }

  const UniqueFd listener_;
  const uint16_t port_;
  const SourceMemory& memory_;
  std::atomic<bool> stop_{false};
  std::list<Connection> connections_;  // of the thread
  std::thread thread_;
};

class GrpcEcho final : public v1::DataPlaneService::Service {
 public:
  explicit GrpcEcho(const SourceMemory* memory) : memory_(*memory) {}

  grpc::Status Urgent(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::UrgentResponse, v1::UrgentRequest>* stream)
      override {
    v1::UrgentRequest request;
    v1::UrgentResponse response;
    v1::PageRun& run = *response.add_runs();
    run.set_page_count(1);
    run.set_crc32c(1);
    while (stream->Read(&request)) {
      const uint64_t offset = request.ram_offsets_bytes_size() == 1
                                  ? request.ram_offsets_bytes(0)
                                  : UINT64_MAX;
      if (offset >= BytesIn(memory_.pages()).value()) {
        return {grpc::StatusCode::OUT_OF_RANGE, "no such page"};
      }
      run.set_ram_offset_bytes(offset);
      run.set_data(memory_.PageAt(PageOf(RamOffset(offset))), kPageSize);
      if (!stream->Write(response)) break;
    }
    return grpc::Status::OK;
  }

  // All pages in their order, 64 in each message, as a FetchRange is answered.
  grpc::Status Bulk(grpc::ServerContext*,
                    grpc::ServerReaderWriter<v1::BulkResponse, v1::BulkRequest>*
                        stream) override {
    v1::BulkResponse response;
    v1::PageRun& run = *response.mutable_pages()->add_runs();
    run.set_crc32c(1);
    const uint64_t end = memory_.pages().value();
    for (uint64_t page = 0; page < end; page += kEchoRunPages) {
      const uint64_t count = std::min(kEchoRunPages, end - page);
      run.set_ram_offset_bytes(page * kPageSize);
      run.set_page_count(count);
      run.set_data(memory_.PageAt(PageIndex(page)), count * kPageSize);
      if (!stream->Write(response)) break;
    }
    return grpc::Status::OK;
  }

 private:
  const SourceMemory& memory_;
};

class GrpcServer final : public EchoServer {
 public:
  explicit GrpcServer(const SourceMemory* memory) : echo_(memory) {}

  absl::Status Listen() {
    auto listener = GrpcListener::Create(
        {.address = "127.0.0.1:0",
         .security = {.credentials = grpc::InsecureServerCredentials()}},
        {&echo_});
    if (listener.ok()) listener_ = *std::move(listener);
    return listener.status();
  }

  std::string address() const override { return listener_->address(); }

 private:
  GrpcEcho echo_;
  std::unique_ptr<GrpcListener> listener_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EchoServer>> NewEchoServer(
    EchoKind kind, const SourceMemory* memory) {
  if (kind == EchoKind::kGrpc) {
    auto server = std::make_unique<GrpcServer>(memory);
    if (absl::Status s = server->Listen(); !s.ok()) return s;
    return server;
  }
  uint16_t port;
  absl::StatusOr<UniqueFd> listener = ListenOnLoopback(&port);
  if (!listener.ok()) return listener.status();
  return std::make_unique<TcpServer>(*std::move(listener), port, memory);
}

}  // namespace postcopy
