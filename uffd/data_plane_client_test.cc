// The client against a source that says, over a real connection, what the test
// wants it to say, also what no source of ours would.
#include "uffd/data_plane_client.h"

#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/server_posix.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "postcopy/v1/data_plane.grpc.pb.h"

namespace postcopy {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSessionId = 0x1234567890abcdef;
// For what must happen; a test that reaches it has failed.
constexpr std::chrono::seconds kPatience(60);

std::string Text(const absl::Status& status) {
  return std::string(status.message());
}

absl::Span<const uint8_t> AsBytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

RamLayout TwoRegions() {
  return *RamLayout::Create(
      {{.name = "low", .start = RamOffset(0), .length = ByteCount(1 << 20)},
       {.name = "high",
        .start = RamOffset(1 << 20),
        .length = ByteCount(3 << 20)}});
}

v1::PageRun RunOf(uint64_t offset, uint64_t pages, const std::string& data) {
  v1::PageRun run;
  run.set_ram_offset_bytes(offset);
  run.set_page_count(pages);
  run.set_data(data);
  run.set_crc32c(PlacedCrc32c(RamOffset(offset), pages, AsBytes(data)));
  return run;
}

std::string PageOfBytes(char byte) { return std::string(kPageSize, byte); }

// A lane as the source sees it: notes what comes, says what the test wants.
// Thread-safe.
template <typename Request, typename Response>
class ScriptedLane {
 public:
  void Say(const Response& response) {
    const std::lock_guard<std::mutex> lock(mutex_);
    said_.push_back(response);
    changed_.notify_all();
  }
  void End(const grpc::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
    end_ = status;
    changed_.notify_all();
  }
  std::vector<Request> Await(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience,
                                  [&] { return heard_.size() >= count; }));
    return heard_;
  }
  // The client has said that it will say no more.
  void AwaitNoMore() {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(
        changed_.wait_for(lock, kPatience, [this] { return no_more_ > 0; }));
  }

  // The handler of the stream.
  grpc::Status Run(grpc::ServerContext* context,
                   grpc::ServerReaderWriter<Response, Request>* stream) {
    bool no_more = false;  // guarded by mutex_
    std::thread reader([&] {
      Request request;
      while (stream->Read(&request)) Hear(request);
      const std::lock_guard<std::mutex> lock(mutex_);
      no_more = true;
      ++no_more_;
      changed_.notify_all();
    });
    Talk(stream, no_more);
    grpc::Status end;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      end = end_;
      if (!no_more) context->TryCancel();
    }
    reader.join();
    return end;
  }

 private:
  void Hear(const Request& request) {
    const std::lock_guard<std::mutex> lock(mutex_);
    heard_.push_back(request);
    changed_.notify_all();
  }
  void Talk(grpc::ServerReaderWriter<Response, Request>* stream,
            const bool& no_more) {
    while (true) {
      Response response;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock,
                      [&] { return !said_.empty() || ending_ || no_more; });
        if (said_.empty()) return;
        response = std::move(said_.front());
        said_.pop_front();
      }
      if (!stream->Write(response)) return;
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Response> said_;
  std::vector<Request> heard_;
  bool ending_ = false;
  int no_more_ = 0;  // streams whose client says no more
  grpc::Status end_;
};

// A source with one session.
class ScriptedSource final : public v1::DataPlaneService::Service {
 public:
  using UrgentStream =
      grpc::ServerReaderWriter<v1::UrgentResponse, v1::UrgentRequest>;
  using BulkStream =
      grpc::ServerReaderWriter<v1::BulkResponse, v1::BulkRequest>;

  grpc::Status OpenSession(grpc::ServerContext* /*context*/,
                           const v1::OpenSessionRequest* request,
                           v1::OpenSessionResponse* response) override {
    opened = *request;
    response->set_protocol_version(1);
    response->set_session_id(kSessionId);
    response->set_epoch(request->epoch());
    response->set_committed(committed);
    return open_status;
  }
  grpc::Status OpenSnapshot(grpc::ServerContext* /*context*/,
                            const v1::OpenSnapshotRequest* /*request*/,
                            v1::OpenSnapshotResponse* response) override {
    response->mutable_session()->set_session_id(kSessionId);
    response->mutable_session()->set_epoch(1);
    return open_status;
  }
  grpc::Status Urgent(grpc::ServerContext* context,
                      UrgentStream* stream) override {
    return urgent.Run(context, stream);
  }
  grpc::Status Bulk(grpc::ServerContext* context, BulkStream* stream) override {
    v1::BulkRequest attach;
    if (!bulk_refusal.ok() && stream->Read(&attach)) return bulk_refusal;
    return bulk.Run(context, stream);
  }
  grpc::Status CompleteSession(
      grpc::ServerContext* /*context*/,
      const v1::CompleteSessionRequest* request,
      v1::CompleteSessionResponse* /*response*/) override {
    completed = *request;
    return complete_status;
  }

  // Set before the call that needs them; read after one that returned.
  bool committed = false;
  grpc::Status open_status;
  grpc::Status bulk_refusal;
  grpc::Status complete_status;
  v1::OpenSessionRequest opened;
  v1::CompleteSessionRequest completed;

  ScriptedLane<v1::UrgentRequest, v1::UrgentResponse> urgent;
  ScriptedLane<v1::BulkRequest, v1::BulkResponse> bulk;
};

class DataPlaneClientTest : public testing::Test {
 protected:
  DataPlaneClientTest() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(&source_);
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port_);
    dialer_ = NewGrpcSourceDialer(address_, grpc::InsecureChannelCredentials,
                                  "migration-1", "vm-1", TwoRegions(),
                                  "4bf92f3577b34da6a3ce929d0e0e4736");
  }
  ~DataPlaneClientTest() override {
    connection_.reset();
    if (server_ != nullptr) {
      source_.urgent.End(grpc::Status::OK);
      source_.bulk.End(grpc::Status::OK);
      server_->Shutdown(std::chrono::system_clock::now());
    }
  }

  SourceConnection& Open(uint64_t epoch = 1) {
    absl::StatusOr<std::unique_ptr<SourceConnection>> connection =
        dialer_->Open(epoch, {});
    EXPECT_TRUE(connection.ok()) << connection.status();
    connection_ = *std::move(connection);
    return *connection_;
  }
  void SayPages(const std::vector<v1::PageRun>& runs) {
    v1::BulkResponse response;
    response.mutable_pages();
    for (const v1::PageRun& run : runs) {
      *response.mutable_pages()->add_runs() = run;
    }
    source_.bulk.Say(response);
  }
  void SayUrgent(const std::vector<v1::PageRun>& runs) {
    v1::UrgentResponse response;
    for (const v1::PageRun& run : runs) *response.add_runs() = run;
    source_.urgent.Say(response);
  }
  void SayStale(uint64_t offset, const std::string& bits,
                uint32_t crc_error = 0) {
    v1::BulkResponse response;
    v1::StaleBitmap& stale = *response.mutable_stale();
    stale.set_ram_offset_bytes(offset);
    stale.set_bits(bits);
    stale.set_crc32c(
        PlacedCrc32c(RamOffset(offset), bits.size(), AsBytes(bits)) ^
        crc_error);
    source_.bulk.Say(response);
  }
  // The next bulk event, which is a T.
  template <typename T>
  T Receive() {
    absl::StatusOr<BulkEvent> event = connection_->ReceiveBulk();
    EXPECT_TRUE(event.ok()) << event.status();
    if (!event.ok() || !std::holds_alternative<T>(*event)) {
      ADD_FAILURE() << "not the event expected";
      return T();
    }
    return std::get<T>(*event);
  }
  absl::Status ReceiveError() { return connection_->ReceiveBulk().status(); }

  ScriptedSource source_;
  int port_ = 0;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<SourceDialer> dialer_;
  std::unique_ptr<SourceConnection> connection_;
};

// --- Opening.

TEST_F(DataPlaneClientTest, ForgoesCompressionInLaterSessions) {
  dialer_->ForgoCompression();
  Open();
  EXPECT_FALSE(source_.opened.zstd());
}

// Proves what a source learns of a session: who, which RAM, and both streams
// attached under its name before anything is asked.
TEST_F(DataPlaneClientTest, OpensASessionAndAttachesBothLanes) {
  const SourceConnection& connection = Open(7);
  EXPECT_FALSE(connection.committed());
  EXPECT_EQ(source_.opened.protocol_version(), kDataPlaneClientVersion);
  EXPECT_EQ(source_.opened.migration_id(), "migration-1");
  EXPECT_EQ(source_.opened.vm_name(), "vm-1");
  EXPECT_EQ(source_.opened.epoch(), 7u);
  EXPECT_TRUE(source_.opened.recently_dirtied());
  EXPECT_TRUE(source_.opened.zstd());
  EXPECT_TRUE(source_.opened.urgent_any_order());
  EXPECT_EQ(source_.opened.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
  ASSERT_EQ(source_.opened.layout().regions_size(), 2);
  const v1::RamRegion& high = source_.opened.layout().regions(1);
  EXPECT_EQ(high.name(), "high");
  EXPECT_EQ(high.start_bytes(), uint64_t{1} << 20);
  EXPECT_EQ(high.length_bytes(), uint64_t{3} << 20);
  EXPECT_EQ(high.page_size_bytes(), kPageSize);

  const v1::UrgentRequest urgent = source_.urgent.Await(1).front();
  EXPECT_EQ(urgent.session().session_id(), kSessionId);
  EXPECT_EQ(urgent.session().epoch(), 7u);
  EXPECT_EQ(urgent.ram_offsets_bytes_size(), 0);
  const v1::BulkRequest bulk = source_.bulk.Await(1).front();
  EXPECT_EQ(bulk.session().session_id(), kSessionId);
  EXPECT_EQ(bulk.session().epoch(), 7u);
  EXPECT_TRUE(bulk.has_attach());
}

TEST_F(DataPlaneClientTest, TellsThatTheSourceHasCommitted) {
  source_.committed = true;
  EXPECT_TRUE(Open().committed());
}

// Proves that the source's own words reach the operator, with its address.
TEST_F(DataPlaneClientTest, PassesARefusalOn) {
  source_.open_status = grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                                     "upgrade the older of the two daemons");
  const absl::Status status = dialer_->Open(1, {}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(Text(status), absl::StrCat("source ", address_,
                                       ": upgrade the older of the two "
                                       "daemons"));
}

// Proves that a port where nobody listens is noticed as such: the time-out of
// the call would be DEADLINE_EXCEEDED.
TEST_F(DataPlaneClientTest, IsUnavailableWhereNobodyListens) {
  server_->Shutdown();
  server_.reset();
  const absl::Status status = dialer_->Open(1, {}).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr(address_));
}

// Proves that what the source says about a stream is what its reader gets, and
// what every call gets after that.
TEST_F(DataPlaneClientTest, PassesTheRefusalOfAStreamOn) {
  source_.bulk_refusal =
      grpc::Status(grpc::StatusCode::ABORTED, "cancelled by request");
  absl::StatusOr<std::unique_ptr<SourceConnection>> opened =
      dialer_->Open(1, {});
  ASSERT_TRUE(opened.ok()) << opened.status();
  connection_ = *std::move(opened);
  EXPECT_TRUE(absl::IsAborted(ReceiveError()));
  EXPECT_EQ(Text(ReceiveError()), "cancelled by request");
  const absl::Status sent = connection_->SendRoundAck(1, 0);
  EXPECT_TRUE(absl::IsAborted(sent)) << sent;
}

// --- A source of whose two connections only the first is served: the second is
// taken and never answered, as by a host that hangs.

class HalfDeafPort {
 public:
  explicit HalfDeafPort(grpc::Server* server)
      : listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {.sin_family = AF_INET,
                           .sin_addr = {htonl(INADDR_LOOPBACK)}};
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(listener_.get(), generic, size), 0);
    EXPECT_EQ(::listen(listener_.get(), 8), 0);
    EXPECT_EQ(::getsockname(listener_.get(), generic, &size), 0);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
    thread_ = std::thread([this, server] { Run(server); });
  }
  ~HalfDeafPort() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }

  const std::string& address() const { return address_; }
  // Returns when the second is there.
  void AwaitSecond() { second_.get_future().wait(); }

 private:
  void Run(grpc::Server* server) {
    for (int taken = 0;; ++taken) {
      UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr,
                            SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!fd.valid()) return;
      if (taken == 0) {
        grpc::AddInsecureChannelFromFd(server, fd.Release());
        continue;
      }
      silent_.push_back(std::move(fd));
      if (taken == 1) second_.set_value();
    }
  }

  const UniqueFd listener_;
  std::string address_;
  std::promise<void> second_;
  std::vector<UniqueFd> silent_;  // the thread's
  std::thread thread_;
};

class DialTest : public DataPlaneClientTest {
 protected:
  std::unique_ptr<SourceDialer> DialerTo(
      const std::string& address,
      std::chrono::nanoseconds timeout = kPatience) const {
    return NewGrpcSourceDialer(address, grpc::InsecureChannelCredentials,
                               "migration-1", "vm-1", TwoRegions(), "",
                               timeout);
  }
  std::unique_ptr<SnapshotDialer> SnapshotDialerTo(
      const std::string& address,
      std::chrono::nanoseconds timeout = kPatience) const {
    return NewGrpcSnapshotDialer(address, grpc::InsecureChannelCredentials,
                                 "web", timeout);
  }

  HalfDeafPort port_to_nowhere_{server_.get()};
};

// gRPC itself would wait for 20 s, and say UNAVAILABLE.
TEST_F(DialTest, ASecondConnectionThatIsNotAnsweredIsGivenUpWhenAsked) {
  const auto dialer = DialerTo(port_to_nowhere_.address());
  std::stop_source stop;
  std::thread asker([&] {
    port_to_nowhere_.AwaitSecond();
    stop.request_stop();
  });
  EXPECT_EQ(dialer->Open(1, stop.get_token()).status().code(),
            absl::StatusCode::kCancelled);
  asker.join();
  // So from then on.
  EXPECT_EQ(dialer->Open(2, stop.get_token()).status().code(),
            absl::StatusCode::kCancelled);
}

TEST_F(DialTest, ASnapshotsSecondConnectionIsGivenUpWhenAsked) {
  const auto dialer = SnapshotDialerTo(port_to_nowhere_.address());
  std::thread asker([&] {
    port_to_nowhere_.AwaitSecond();
    dialer->Cancel();
  });
  EXPECT_EQ(dialer->Open().status().code(), absl::StatusCode::kCancelled);
  asker.join();
  EXPECT_EQ(dialer->Open().status().code(), absl::StatusCode::kCancelled);
}

TEST_F(DialTest, WhatIsNotAnsweredEndsWithItsTime) {
  const std::string& address = port_to_nowhere_.address();
  const auto expect_expired = [&](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(Text(status), HasSubstr(address));
    EXPECT_THAT(Text(status), HasSubstr("does not answer"));
  };
  const std::chrono::milliseconds timeout(500);
  expect_expired(DialerTo(address, timeout)->Open(1, {}).status());
  // Not even the first is answered any more.
  expect_expired(SnapshotDialerTo(address, timeout)->Open().status());
}

// --- Saying.

// Proves the bytes of every message, each with the session's name.
TEST_F(DataPlaneClientTest, SaysWhatItIsTold) {
  SourceConnection& connection = Open(3);
  EXPECT_TRUE(connection.SendRoundAck(5, 2).ok());
  EXPECT_TRUE(connection.SendReady(PageCount(17)).ok());
  EXPECT_TRUE(connection.SendResumed(2'500'999).ok());
  EXPECT_TRUE(connection.RequestBulk({PageIndex(4), PageCount(9)}).ok());
  const std::vector<PageIndex> pages = {PageIndex(2), PageIndex(1000)};
  EXPECT_TRUE(connection.RequestUrgent(pages).ok());
  EXPECT_TRUE(connection.RequestUrgent({pages.data(), 1}).ok());

  const std::vector<v1::BulkRequest> bulk = source_.bulk.Await(5);
  for (const v1::BulkRequest& request : bulk) {
    EXPECT_EQ(request.session().session_id(), kSessionId);
    EXPECT_EQ(request.session().epoch(), 3u);
  }
  EXPECT_EQ(bulk[1].round_ack().round(), 5u);
  EXPECT_EQ(bulk[1].round_ack().damaged_runs(), 2u);
  EXPECT_EQ(bulk[2].switch_over_ready().discarded_pages(), 17u);
  EXPECT_EQ(bulk[3].guest_resumed().vmm_load_resume_us(), 2500u);
  EXPECT_EQ(bulk[4].fetch().ram_offset_bytes(), 4 * kPageSize);
  EXPECT_EQ(bulk[4].fetch().page_count(), 9u);
  const std::vector<v1::UrgentRequest> urgent = source_.urgent.Await(3);
  ASSERT_EQ(urgent[1].ram_offsets_bytes_size(), 2);
  EXPECT_EQ(urgent[1].ram_offsets_bytes(1), 1000 * kPageSize);
  // The request is reused, its content is not.
  ASSERT_EQ(urgent[2].ram_offsets_bytes_size(), 1);
  EXPECT_EQ(urgent[2].ram_offsets_bytes(0), 2 * kPageSize);
  EXPECT_EQ(urgent[2].session().session_id(), kSessionId);
}

// Proves that several threads may send at once, and that nothing is lost.
TEST_F(DataPlaneClientTest, SendsFromSeveralThreads) {
  SourceConnection& connection = Open();
  constexpr int kEach = 200;
  std::thread fetcher([&] {
    for (int i = 0; i < kEach; ++i) {
      EXPECT_TRUE(connection.RequestBulk({PageIndex(1), PageCount(1)}).ok());
    }
  });
  std::thread faulter([&] {
    const PageIndex page(1);
    for (int i = 0; i < kEach; ++i) {
      EXPECT_TRUE(connection.RequestUrgent({&page, 1}).ok());
    }
  });
  for (uint32_t i = 0; i < kEach; ++i) {
    EXPECT_TRUE(connection.SendRoundAck(i, 0).ok());
  }
  fetcher.join();
  faulter.join();
  uint32_t acks = 0;
  for (const v1::BulkRequest& request : source_.bulk.Await(1 + 2 * kEach)) {
    if (!request.has_round_ack()) continue;
    EXPECT_EQ(request.round_ack().round(), acks++);
  }
  EXPECT_EQ(acks, static_cast<uint32_t>(kEach));
  EXPECT_EQ(source_.urgent.Await(1 + kEach).size(), 1u + kEach);
}

TEST_F(DataPlaneClientTest, TellsThatEveryPageIsHere) {
  SourceConnection& connection = Open(9);
  // The lanes may have ended.
  connection.Abort();
  EXPECT_FALSE(ReceiveError().ok());
  EXPECT_TRUE(connection.Complete().ok());
  EXPECT_EQ(source_.completed.session().session_id(), kSessionId);
  EXPECT_EQ(source_.completed.session().epoch(), 9u);
  source_.complete_status =
      grpc::Status(grpc::StatusCode::NOT_FOUND, "no such session");
  EXPECT_TRUE(absl::IsNotFound(connection.Complete()));
}

// Proves that the source hears the end of the requests behind all of them, and
// that the client then sees the end of the lane.
TEST_F(DataPlaneClientTest, EndsRequestsBehindWhatWasSent) {
  SourceConnection& connection = Open();
  EXPECT_TRUE(connection.SendResumed(1000).ok());
  connection.EndRequests();
  connection.EndRequests();
  EXPECT_FALSE(connection.RequestBulk({PageIndex(0), PageCount(1)}).ok());
  source_.bulk.AwaitNoMore();
  EXPECT_EQ(source_.bulk.Await(2).size(), 2u);
  const absl::Status end = ReceiveError();
  EXPECT_TRUE(absl::IsUnavailable(end)) << end;
  EXPECT_THAT(Text(end), HasSubstr("ended the stream"));
  EXPECT_TRUE(connection.Complete().ok());
}

// --- Hearing: pages.

TEST_F(DataPlaneClientTest, TakesPages) {
  Open();
  const std::string data = PageOfBytes('a') + PageOfBytes('b');
  SayPages({RunOf(2 * kPageSize, 2, data), RunOf(kPageSize * 8, 300, "")});
  const auto pages = Receive<PagesArrived>();
  EXPECT_EQ(pages.damaged_runs, 0u);
  ASSERT_EQ(pages.runs.size(), 2u);
  EXPECT_EQ(pages.runs[0].pages, (PageRun{PageIndex(2), PageCount(2)}));
  EXPECT_EQ(pages.runs[0].data, AsBytes(data));
  EXPECT_EQ(pages.runs[1].pages, (PageRun{PageIndex(8), PageCount(300)}));
  EXPECT_TRUE(pages.runs[1].data.empty());
}

// Proves that on the bulk lane damage of any kind, to the place as to the
// bytes, is counted and left out, and the rest of the batch taken.
TEST_F(DataPlaneClientTest, LeavesDamagedRunsOfTheBulkLaneOut) {
  Open();
  v1::PageRun moved = RunOf(0, 1, PageOfBytes('a'));
  moved.set_ram_offset_bytes(kPageSize);
  v1::PageRun flipped = RunOf(0, 1, PageOfBytes('b'));
  (*flipped.mutable_data())[100] ^= 1;
  v1::PageRun longer = RunOf(0, 1, "");
  longer.set_page_count(2);
  v1::PageRun crc = RunOf(0, 1, PageOfBytes('c'));
  crc.set_crc32c(crc.crc32c() ^ 1);
  // Damaged first, malformed second: a bit flip is no reason to give up.
  v1::PageRun unaligned = RunOf(0, 1, "");
  unaligned.set_ram_offset_bytes(1);
  SayPages({moved, flipped, RunOf(5 * kPageSize, 1, PageOfBytes('d')), longer,
            crc, unaligned});
  const auto pages = Receive<PagesArrived>();
  EXPECT_EQ(pages.damaged_runs, 5u);
  ASSERT_EQ(pages.runs.size(), 1u);
  EXPECT_EQ(pages.runs[0].pages, (PageRun{PageIndex(5), PageCount(1)}));

  // The next batch starts from nothing.
  SayPages({});
  const auto none = Receive<PagesArrived>();
  EXPECT_EQ(none.damaged_runs, 0u);
  EXPECT_TRUE(none.runs.empty());
}

TEST_F(DataPlaneClientTest, TakesFaultedPages) {
  SourceConnection& connection = Open();
  const std::string data = PageOfBytes('a');
  SayUrgent({RunOf(3 * kPageSize, 1, data), RunOf(0, 1, "")});
  const auto runs = connection.ReceiveUrgent();
  ASSERT_TRUE(runs.ok()) << runs.status();
  ASSERT_EQ(runs->size(), 2u);
  EXPECT_EQ((*runs)[0].pages, (PageRun{PageIndex(3), PageCount(1)}));
  EXPECT_EQ((*runs)[0].data, AsBytes(data));
  EXPECT_TRUE((*runs)[1].data.empty());
}

// Proves that a damaged faulted page is an error that another session mends:
// nobody would ask for it again in this one.
TEST_F(DataPlaneClientTest, RefusesDamagedFaultedPages) {
  SourceConnection& connection = Open();
  v1::PageRun damaged = RunOf(0, 1, PageOfBytes('a'));
  damaged.set_crc32c(damaged.crc32c() + 1);
  SayUrgent({RunOf(kPageSize, 1, ""), damaged});
  const absl::Status status = connection.ReceiveUrgent().status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
}

struct NoRun {
  const char* name;
  uint64_t offset;
  uint64_t pages;
};

class NoRunTest : public DataPlaneClientTest,
                  public testing::WithParamInterface<NoRun> {};

// Proves that a run that is none, though its checksum fits, is refused on both
// lanes.
TEST_P(NoRunTest, IsInvalid) {
  SourceConnection& connection = Open();
  const v1::PageRun run = RunOf(GetParam().offset, GetParam().pages, "");
  SayPages({run});
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveError()));
  SayUrgent({run});
  EXPECT_TRUE(absl::IsInvalidArgument(connection.ReceiveUrgent().status()));
}

INSTANTIATE_TEST_SUITE_P(
    All, NoRunTest,
    testing::Values(NoRun{"NoPages", 0, 0}, NoRun{"Unaligned", 4095, 1},
                    NoRun{"OffsetAtTheEndOfNumbers", UINT64_MAX, 1},
                    NoRun{"LargerThanAnyRam", 0,
                          kMaxRamBytes.value() / kPageSize + 1},
                    NoRun{"LengthAtTheEndOfNumbers", 0, UINT64_MAX}),
    [](const auto& info) { return std::string(info.param.name); });

// --- Hearing: the rest.

TEST_F(DataPlaneClientTest, TakesWhatTheSourceSays) {
  Open();
  v1::BulkResponse response;
  response.mutable_round_end()->set_round(4);
  source_.bulk.Say(response);
  EXPECT_EQ(Receive<RoundEnded>().round, 4u);

  const std::string bits = "12345678ABCDEFGH";
  SayStale(64 * kPageSize, bits);
  const auto stale = Receive<StalePiece>();
  EXPECT_EQ(stale.first, PageIndex(64));
  EXPECT_EQ(stale.bits, AsBytes(bits));

  response.mutable_device_state()->set_data("state");
  source_.bulk.Say(response);
  EXPECT_EQ(Receive<DeviceStatePiece>().data, "state");

  response.mutable_switch_over()->set_stale_pages(1);
  response.mutable_switch_over()->set_device_state_bytes(2);
  response.mutable_switch_over()->set_device_state_crc32c(3);
  source_.bulk.Say(response);
  const auto complete = Receive<SwitchOverComplete>();
  EXPECT_EQ(complete.stale, PageCount(1));
  EXPECT_EQ(complete.device_state_bytes, 2u);
  EXPECT_EQ(complete.device_state_crc32c, 3u);

  response.mutable_commit();
  source_.bulk.Say(response);
  Receive<Committed>();

  response.mutable_recently_dirtied()->add_ram_offsets_bytes(kPageSize);
  response.mutable_recently_dirtied()->add_page_counts(3);
  source_.bulk.Say(response);
  EXPECT_EQ(Receive<PagesDirtied>().runs,
            (std::vector<PageRun>{{PageIndex(1), PageCount(3)}}));
}

TEST_F(DataPlaneClientTest, RefusesADamagedStalePiece) {
  Open();
  SayStale(0, "12345678", /*crc_error=*/1);
  EXPECT_TRUE(absl::IsDataLoss(ReceiveError()));
}

TEST_F(DataPlaneClientTest, RefusesStalePiecesThatAreNotAligned) {
  Open();
  SayStale(kPageSize, "12345678");
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveError()));
  SayStale(0, "1234567");
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveError()));
}

TEST_F(DataPlaneClientTest, RefusesABulkMessageWithoutContent) {
  Open();
  source_.bulk.Say(v1::BulkResponse());
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveError()));
}

// Proves that a response larger than any that follows the protocol is not
// taken, and that the lane ends with it.
TEST_F(DataPlaneClientTest, RefusesAnOversizedResponse) {
  Open();
  v1::BulkResponse response;
  response.mutable_device_state()->set_data(
      std::string(kDataPlaneResponseBytesMax - 64, 'x'));
  source_.bulk.Say(response);
  EXPECT_EQ(Receive<DeviceStatePiece>().data.size(),
            size_t{kDataPlaneResponseBytesMax - 64});
  response.mutable_device_state()->set_data(
      std::string(kDataPlaneResponseBytesMax, 'x'));
  source_.bulk.Say(response);
  const absl::Status status = ReceiveError();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
}

// --- Ends.

// Proves that Abort frees both receivers, and that nothing said afterwards, on
// either lane, succeeds or crashes.
// A field of the right number, with what is no message of its type.
template <typename Response>
Response Unreadable() {
  Response response;
  response.GetReflection()->MutableUnknownFields(&response)->AddLengthDelimited(
      1, "\xff\xff\xff");
  return response;
}

// Its stream goes on, so that no status comes; nobody waits for one, nor for
// who does.
TEST_F(DataPlaneClientTest, ALaneEndsWithAMessageThatCannotBeRead) {
  SourceConnection& connection = Open();
  source_.bulk.Say(Unreadable<v1::BulkResponse>());
  const absl::StatusOr<BulkEvent> event = connection.ReceiveBulk();
  EXPECT_TRUE(absl::IsDataLoss(event.status())) << event.status();
  EXPECT_THAT(Text(event.status()), HasSubstr("cannot be read"));
  EXPECT_TRUE(
      absl::IsDataLoss(connection.RequestBulk({PageIndex(0), PageCount(1)})));

  source_.urgent.Say(Unreadable<v1::UrgentResponse>());
  EXPECT_TRUE(absl::IsDataLoss(connection.ReceiveUrgent().status()));
  const PageIndex page(7);
  EXPECT_TRUE(absl::IsDataLoss(connection.RequestUrgent({&page, 1})));
}

TEST_F(DataPlaneClientTest, AbortFreesBothReceivers) {
  SourceConnection& connection = Open();
  source_.bulk.Await(1);
  source_.urgent.Await(1);
  absl::Status urgent_end;
  std::thread urgent([&] { urgent_end = connection.ReceiveUrgent().status(); });
  std::thread aborter([&] { connection.Abort(); });
  const absl::Status bulk_end = ReceiveError();
  urgent.join();
  aborter.join();
  EXPECT_TRUE(absl::IsCancelled(bulk_end)) << bulk_end;
  EXPECT_TRUE(absl::IsCancelled(urgent_end)) << urgent_end;

  const PageIndex page(0);
  EXPECT_FALSE(connection.RequestUrgent({&page, 1}).ok());
  EXPECT_FALSE(connection.RequestBulk({page, PageCount(1)}).ok());
  EXPECT_FALSE(connection.SendRoundAck(1, 0).ok());
  EXPECT_FALSE(connection.SendReady(PageCount(0)).ok());
  EXPECT_FALSE(connection.SendResumed(0).ok());
  EXPECT_TRUE(absl::IsCancelled(ReceiveError()));
  EXPECT_TRUE(absl::IsCancelled(connection.ReceiveUrgent().status()));
  connection.EndRequests();
  connection.Abort();
}

// Proves that a source that ends a stream without an error is lost, which
// another session may mend.
TEST_F(DataPlaneClientTest, IsUnavailableWhenTheSourceEndsAStream) {
  SourceConnection& connection = Open();
  connection.EndRequests();
  EXPECT_TRUE(absl::IsUnavailable(ReceiveError()));
  const absl::Status sent = connection.SendRoundAck(1, 0);
  EXPECT_TRUE(absl::IsUnavailable(sent)) << sent;
}

// Proves that a source whose process ends is noticed by who waits.
TEST_F(DataPlaneClientTest, IsLostWithTheServer) {
  SourceConnection& connection = Open();
  source_.bulk.Await(1);
  std::thread killer(
      [this] { server_->Shutdown(std::chrono::system_clock::now()); });
  EXPECT_FALSE(ReceiveError().ok());
  EXPECT_FALSE(connection.ReceiveUrgent().ok());
  killer.join();
}

// Proves that a second session lives on when the first is destroyed, each
// having its own connections.
TEST_F(DataPlaneClientTest, SessionsShareNothing) {
  Open(1);
  const std::unique_ptr<SourceConnection> first = std::move(connection_);
  first->Abort();
  SourceConnection& second = Open(2);
  EXPECT_EQ(source_.opened.epoch(), 2u);
  EXPECT_TRUE(second.SendReady(PageCount(1)).ok());
}

// Proves that a session nobody has used can be destroyed, with answers under
// way too.
TEST_F(DataPlaneClientTest, IsDestroyedWithoutUse) {
  Open(1);
  connection_.reset();
  Open(2);
  SayPages({RunOf(0, 1, PageOfBytes('a'))});
  SayPages({RunOf(0, 1, PageOfBytes('b'))});
  connection_.reset();
  dialer_.reset();
}

}  // namespace
}  // namespace postcopy
