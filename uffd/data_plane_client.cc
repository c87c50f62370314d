#include "uffd/data_plane_client.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/run_compression.h"
#include "postcopy/v1/data_plane.grpc.pb.h"
#include "uffd/response_decoder.h"

namespace postcopy {
namespace {

// How long a unary call may take: the peer answers from memory.
constexpr std::chrono::seconds kCallTimeout(5);

// For how long the status of a stream that has ended may be on its way: it
// comes with the end.
constexpr std::chrono::seconds kStatusTimeout(1);

// What a message may keep of its predecessors' memory for the next: without a
// bound, a peer could grow it string by string.
constexpr size_t kRetainedBytesMax = 4 << 20;

// A host that vanished without a word is noticed after this much silence.
constexpr int kKeepaliveMillis = 5000;

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

absl::Status OfSource(const std::string& address, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("source ", address, ": ", status.message()));
}

// A channel that shares its connection with no other.
std::shared_ptr<grpc::Channel> NewLane(
    const std::string& address,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMillis);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveMillis);
  // A guest that touches nothing for a while sends nothing either.
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(kDataPlaneResponseBytesMax);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

// What one Open waits for: its calls are cancelled when that takes too long, or
// when it is told to stop. gRPC alone waits 20 s for a peer that takes a
// connection and says nothing.
class Dial {
 public:
  Dial(const std::stop_token& stop, std::chrono::nanoseconds timeout)
      : stop_(stop), on_stop_(stop, [this] { calls_->Cancel(); }) {
    const auto deadline =
        std::chrono::system_clock::now() +
        std::chrono::duration_cast<std::chrono::system_clock::duration>(
            timeout);
    // May come behind the end of this, hence its share.
    alarm_.Set(deadline, [calls = calls_](bool expired) {
      if (expired) calls->Expire();
    });
  }

  // The call made with `context`, which stays until End, is one of them.
  void Add(grpc::ClientContext* context) { calls_->Add(context); }

  // No call is cancelled any more. What the last one ended with, or why that
  // was.
  absl::Status End(absl::Status status) {
    const bool expired = calls_->Forget();
    if (status.ok()) return status;
    if (stop_.stop_requested()) return absl::CancelledError("told to stop");
    if (!expired) return status;
    return absl::DeadlineExceededError(
        "it takes connections, but does not answer: is pageserverd there "
        "overloaded, or the network?");
  }

 private:
  class Calls {
   public:
    void Add(grpc::ClientContext* context) {
      const std::lock_guard<std::mutex> lock(mutex_);
      contexts_.push_back(context);
      if (cancelled_) context->TryCancel();
    }
    void Cancel() {
      const std::lock_guard<std::mutex> lock(mutex_);
      CancelLocked();
    }
    void Expire() {
      const std::lock_guard<std::mutex> lock(mutex_);
      expired_ = true;
      CancelLocked();
    }
    bool Forget() {
      const std::lock_guard<std::mutex> lock(mutex_);
      contexts_.clear();
      return expired_;
    }

   private:
    void CancelLocked() {
      cancelled_ = true;
      for (grpc::ClientContext* context : contexts_) context->TryCancel();
    }

    std::mutex mutex_;
    // Guarded by mutex_.
    std::vector<grpc::ClientContext*> contexts_;
    bool cancelled_ = false;
    bool expired_ = false;
  };

  const std::stop_token stop_;
  const std::shared_ptr<Calls> calls_ = std::make_shared<Calls>();
  const std::stop_callback<std::function<void()>> on_stop_;
  grpc::Alarm alarm_;
};

// One lane: a bidirectional stream whose end is seen once and then remembered.
// One thread reads, any may write.
template <typename Request, typename Response>
class Lane {
 public:
  using Stream = grpc::ClientReaderWriter<Request, Response>;
  using Open = std::unique_ptr<Stream> (*)(v1::DataPlaneService::Stub&,
                                           grpc::ClientContext*);

  // Waits for the connection.
  Lane(const std::shared_ptr<grpc::Channel>& channel, Open open, Dial& dial)
      : stub_(v1::DataPlaneService::NewStub(channel)) {
    dial.Add(context_.get());
    stream_ = open(*stub_, context_.get());
  }

  ~Lane() {
    Abort();
    End().IgnoreError();
  }

  absl::Status Write(const Request& request) {
    std::lock_guard lock(write_mutex_);
    if (ended_) return end_;
    if (writes_ended_) {
      return absl::FailedPreconditionError("requests have been ended");
    }
    if (stream_->Write(request)) return absl::OkStatus();
    return absl::UnavailableError("the connection to the source is lost");
  }

  // Valid until the next call.
  absl::StatusOr<const Response*> Read() {
    // A message keeps the memory of those before it, string by string.
    if (response_.SpaceUsedLong() > kRetainedBytesMax) response_ = Response();
    if (!stream_->Read(&response_)) return End();
    return &response_;
  }

  void Abort() { context_->TryCancel(); }

  // No more writes: the peer sees the end behind what was written.
  void EndWrites() {
    std::lock_guard lock(write_mutex_);
    if (ended_ || writes_ended_) return;
    writes_ended_ = true;
    stream_->WritesDone();
  }

 private:
  // The status that ended the stream; never OK.
  absl::Status End() {
    // No more writes once it is finished.
    std::lock_guard lock(write_mutex_);
    if (ended_) return end_;
    ended_ = true;
    end_ = Finish();
    if (end_.ok()) end_ = absl::UnavailableError("the source ended the stream");
    return end_;
  }

  // A read fails also when what has come is no message, and then the peer goes
  // on: its status would be waited for for ever, and with the lock.
  absl::Status Finish() {
    const auto overdue = std::make_shared<std::atomic<bool>>(false);
    grpc::Alarm alarm;
    // May come behind the end of this, hence the shares.
    alarm.Set(std::chrono::system_clock::now() + kStatusTimeout,
              [overdue, context = context_](bool expired) {
                if (!expired) return;
                overdue->store(true);
                context->TryCancel();
              });
    absl::Status status = FromGrpc(stream_->Finish());
    if (!overdue->load()) return status;
    return absl::DataLossError(
        "it sent a message that cannot be read: does the network change what "
        "it carries (TLS would notice), or is pageserverd there of another "
        "version?");
  }

  const std::unique_ptr<v1::DataPlaneService::Stub> stub_;
  const std::shared_ptr<grpc::ClientContext> context_ =
      std::make_shared<grpc::ClientContext>();
  std::unique_ptr<Stream> stream_;  // constant after construction
  Response response_;

  std::mutex write_mutex_;
  bool writes_ended_ = false;
  bool ended_ = false;
  absl::Status end_;
};

using UrgentLane = Lane<v1::UrgentRequest, v1::UrgentResponse>;
using BulkLane = Lane<v1::BulkRequest, v1::BulkResponse>;

std::unique_ptr<UrgentLane::Stream> OpenUrgent(v1::DataPlaneService::Stub& stub,
                                               grpc::ClientContext* context) {
  return stub.Urgent(context);
}

std::unique_ptr<BulkLane::Stream> OpenBulk(v1::DataPlaneService::Stub& stub,
                                           grpc::ClientContext* context) {
  return stub.Bulk(context);
}

class GrpcSourceConnection final : public SourceConnection {
 public:
  GrpcSourceConnection(std::shared_ptr<grpc::Channel> urgent,
                       const std::shared_ptr<grpc::Channel>& bulk,
                       v1::SessionRef session, bool committed, Dial& dial)
      : channel_(std::move(urgent)),
        committed_(committed),
        session_(std::move(session)),
        urgent_(channel_, OpenUrgent, dial),
        bulk_(bulk, OpenBulk, dial) {
    *urgent_request_.mutable_session() = session_;
  }

  // Makes both streams known to the source.
  absl::Status Attach() {
    if (absl::Status s = urgent_.Write(urgent_request_); !s.ok()) return s;
    v1::BulkRequest request = NewBulkRequest();
    request.mutable_attach();
    return bulk_.Write(request);
  }

  uint64_t session_id() const override { return session_.session_id(); }
  bool committed() const override { return committed_; }

  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override {
    urgent_request_.clear_ram_offsets_bytes();
    for (PageIndex page : pages) {
      urgent_request_.add_ram_offsets_bytes(OffsetOf(page).value());
    }
    urgent_request_.set_crc32c(
        NumbersCrc32c(urgent_request_.ram_offsets_bytes()));
    return urgent_.Write(urgent_request_);
  }

  absl::Status RequestBulk(PageRun run) override {
    v1::BulkRequest request = NewBulkRequest();
    v1::FetchRange& fetch = *request.mutable_fetch();
    fetch.set_ram_offset_bytes(OffsetOf(run.first).value());
    fetch.set_page_count(run.count.value());
    fetch.set_crc32c(
        NumbersCrc32c({fetch.ram_offset_bytes(), fetch.page_count()}));
    return bulk_.Write(request);
  }

  absl::StatusOr<absl::Span<const ReceivedRun>> ReceiveUrgent() override {
    absl::StatusOr<const v1::UrgentResponse*> response = urgent_.Read();
    if (!response.ok()) return response.status();
    return DecodeUrgent(**response, urgent_runs_);
  }

  absl::StatusOr<BulkEvent> ReceiveBulk() override {
    absl::StatusOr<const v1::BulkResponse*> response = bulk_.Read();
    if (!response.ok()) return response.status();
    return DecodeBulk(**response, bulk_runs_, decompressor_);
  }

  absl::Status SendRoundAck(uint32_t round, uint64_t damaged_runs) override {
    v1::BulkRequest request = NewBulkRequest();
    v1::RoundAck& ack = *request.mutable_round_ack();
    ack.set_round(round);
    ack.set_damaged_runs(damaged_runs);
    ack.set_crc32c(NumbersCrc32c({round, damaged_runs}));
    return bulk_.Write(request);
  }

  absl::Status SendReady(PageCount discarded) override {
    v1::BulkRequest request = NewBulkRequest();
    request.mutable_switch_over_ready()->set_discarded_pages(discarded.value());
    return bulk_.Write(request);
  }

  absl::Status SendResumed(int64_t vmm_nanos) override {
    v1::BulkRequest request = NewBulkRequest();
    request.mutable_guest_resumed()->set_vmm_load_resume_us(
        static_cast<uint64_t>(vmm_nanos / kNanosPerMicro));
    return bulk_.Write(request);
  }

  void EndRequests() override { bulk_.EndWrites(); }

  void Abort() override {
    urgent_.Abort();
    bulk_.Abort();
  }

  absl::Status Complete() override {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
    v1::CompleteSessionRequest request;
    v1::CompleteSessionResponse response;
    *request.mutable_session() = session_;
    return FromGrpc(v1::DataPlaneService::NewStub(channel_)->CompleteSession(
        &context, request, &response));
  }

 private:
  v1::BulkRequest NewBulkRequest() const {
    v1::BulkRequest request;
    *request.mutable_session() = session_;
    return request;
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const bool committed_;
  const v1::SessionRef session_;
  UrgentLane urgent_;
  BulkLane bulk_;
  // Each used by the one thread that requests or receives; reused.
  v1::UrgentRequest urgent_request_;
  std::vector<ReceivedRun> urgent_runs_;
  std::vector<ReceivedRun> bulk_runs_;
  RunDecompressor decompressor_;
};

class GrpcSourceDialer final : public SourceDialer {
 public:
  GrpcSourceDialer(std::string address, SourceCredentials credentials,
                   std::string migration_id, std::string vm_name,
                   const RamLayout& layout, std::string trace_id,
                   std::chrono::nanoseconds timeout)
      : address_(std::move(address)),
        credentials_(std::move(credentials)),
        timeout_(timeout) {
    request_.set_protocol_version(kDataPlaneClientVersion);
    request_.set_migration_id(std::move(migration_id));
    request_.set_vm_name(std::move(vm_name));
    request_.set_recently_dirtied(true);
    request_.set_zstd(true);
    // Whoever waits for a page is found by the page.
    request_.set_urgent_any_order(true);
    request_.set_trace_id(std::move(trace_id));
    for (const Region& region : layout.regions()) {
      v1::RamRegion* out = request_.mutable_layout()->add_regions();
      out->set_name(region.name);
      out->set_start_bytes(region.start.value());
      out->set_length_bytes(region.length.value());
      // Of what travels. What its memory is made of concerns neither side.
      out->set_page_size_bytes(kPageSize);
    }
  }

  absl::StatusOr<std::unique_ptr<SourceConnection>> Open(
      uint64_t epoch, std::stop_token stop) override {
    auto credentials = credentials_();
    if (!credentials.ok()) return credentials.status();
    Dial dial(stop, timeout_);
    std::shared_ptr<grpc::Channel> urgent = NewLane(address_, *credentials);
    v1::OpenSessionResponse response;
    absl::Status opened = OpenSession(urgent, epoch, dial, &response);
    if (!opened.ok()) return OfSource(address_, opened);
    v1::SessionRef session;
    session.set_session_id(response.session_id());
    session.set_epoch(response.epoch());
    auto connection = std::make_unique<GrpcSourceConnection>(
        std::move(urgent), NewLane(address_, *credentials), std::move(session),
        response.committed(), dial);
    absl::Status attached = dial.End(connection->Attach());
    if (!attached.ok()) return OfSource(address_, attached);
    return connection;
  }

  void ForgoCompression() override { request_.set_zstd(false); }

 private:
  absl::Status OpenSession(const std::shared_ptr<grpc::Channel>& channel,
                           uint64_t epoch, Dial& dial,
                           v1::OpenSessionResponse* response) {
    request_.set_epoch(epoch);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
    dial.Add(&context);
    return dial.End(
        FromGrpc(v1::DataPlaneService::NewStub(channel)->OpenSession(
            &context, request_, response)));
  }

  const std::string address_;
  const SourceCredentials credentials_;
  const std::chrono::nanoseconds timeout_;
  v1::OpenSessionRequest request_;
};

class GrpcSnapshotDialer final : public SnapshotDialer {
 public:
  GrpcSnapshotDialer(std::string address, SourceCredentials credentials,
                     std::string name, std::chrono::nanoseconds timeout)
      : address_(std::move(address)),
        credentials_(std::move(credentials)),
        timeout_(timeout) {
    request_.set_protocol_version(kDataPlaneClientVersion);
    request_.set_snapshot_name(std::move(name));
    request_.set_urgent_any_order(true);
  }

  absl::StatusOr<OpenedSnapshot> Open() override {
    auto credentials = credentials_();
    if (!credentials.ok()) return credentials.status();
    Dial dial(stop_.get_token(), timeout_);
    std::shared_ptr<grpc::Channel> urgent = NewLane(address_, *credentials);
    v1::OpenSnapshotResponse response;
    absl::Status status = Call(urgent, dial, &response);
    // The source has a newer session than it could tell of.
    if (absl::IsFailedPrecondition(status)) request_.clear_lost();
    if (!status.ok()) return OfSource(address_, status);
    *request_.mutable_lost() = response.session();
    auto connection = std::make_unique<GrpcSourceConnection>(
        std::move(urgent), NewLane(address_, *credentials), response.session(),
        /*committed=*/true, dial);
    absl::Status attached = dial.End(connection->Attach());
    if (!attached.ok()) return OfSource(address_, attached);
    return OpenedSnapshot{std::move(connection),
                          ByteCount(response.size_bytes()),
                          response.content_id()};
  }

  void Cancel() override { stop_.request_stop(); }

  std::string name() const override {
    return absl::StrCat("snapshot \"", request_.snapshot_name(), "\" of ",
                        address_);
  }

 private:
  absl::Status Call(const std::shared_ptr<grpc::Channel>& channel, Dial& dial,
                    v1::OpenSnapshotResponse* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
    dial.Add(&context);
    absl::Status status =
        dial.End(FromGrpc(v1::DataPlaneService::NewStub(channel)->OpenSnapshot(
            &context, request_, response)));
    if (!absl::IsUnimplemented(status)) return status;
    return absl::UnimplementedError(
        "it does not know how to serve snapshots: upgrade pageserverd there");
  }

  const std::string address_;
  const SourceCredentials credentials_;
  const std::chrono::nanoseconds timeout_;
  v1::OpenSnapshotRequest request_;
  std::stop_source stop_;
};

}  // namespace

std::unique_ptr<SourceDialer> NewGrpcSourceDialer(
    std::string address, SourceCredentials credentials,
    std::string migration_id, std::string vm_name, const RamLayout& layout,
    std::string trace_id, std::chrono::nanoseconds timeout) {
  return std::make_unique<GrpcSourceDialer>(
      std::move(address), std::move(credentials), std::move(migration_id),
      std::move(vm_name), layout, std::move(trace_id), timeout);
}

std::unique_ptr<SnapshotDialer> NewGrpcSnapshotDialer(
    std::string address, SourceCredentials credentials, std::string name,
    std::chrono::nanoseconds timeout) {
  return std::make_unique<GrpcSnapshotDialer>(
      std::move(address), std::move(credentials), std::move(name), timeout);
}

}  // namespace postcopy
