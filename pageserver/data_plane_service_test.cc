#include "pageserver/data_plane_service.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/simulated_dirty_source.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"
#include "pageserver/served_snapshot.h"
#include "pageserver/session_directory.h"
#include "pageserver/snapshot_sessions.h"
#include "pageserver/source_migration.h"
#include "pageserver/test_guest.h"
#include "postcopy/v1/data_plane.grpc.pb.h"

namespace postcopy {
namespace {

using grpc::StatusCode;

using BulkCall = grpc::ClientReaderWriter<v1::BulkRequest, v1::BulkResponse>;
using UrgentCall =
    grpc::ClientReaderWriter<v1::UrgentRequest, v1::UrgentResponse>;

// --- CRC-32C as the proto describes it, bit by bit: nothing of what the
// service itself uses.

uint32_t PlainCrc32c(absl::string_view bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78 : 0);
    }
  }
  return ~crc;
}

std::string LittleEndian(uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) {
    bytes.push_back(static_cast<char>(value >> (8 * i)));
  }
  return bytes;
}

uint32_t PlacedCrc(uint64_t offset, uint64_t count, absl::string_view bytes) {
  return PlainCrc32c(
      absl::StrCat(LittleEndian(offset), LittleEndian(count), bytes));
}

// RFC 3720, B.4: 32 bytes of zeros.
TEST(PlainCrc32cTest, KnownValue) {
  EXPECT_EQ(PlainCrc32c(std::string(32, '\0')), 0x8A9136AAu);
}

// --- A source that serves on a port, and what a destination's daemon would
// say to it, message by message.

class Source {
 public:
  explicit Source(const std::vector<uint64_t>& region_pages,
                  std::chrono::nanoseconds attach_timeout = kAttachTimeout)
      : guest_(region_pages),
        service_(&directory_, &snapshots_, Observer(), attach_timeout) {
    auto dirty =
        std::make_unique<SimulatedDirtySource>(PageCount(guest_.pages()));
    dirty_ = dirty.get();
    SourceGuest vmm = {
        .pause =
            [this] {
              if (on_pause_) on_pause_();
              return absl::OkStatus();
            },
        .save_device_state = [this] { return device_state_; },
        .resume = [] { return absl::OkStatus(); },
        .ended = [this](bool completed) { completed_ = completed; }};
    SourceOptions options;
    options.reconnect_nanos = 0;
    options.round_nanos_min = kNanosPerMilli;
    absl::StatusOr<std::unique_ptr<SourceMigration>> migration =
        SourceMigration::Create(guest_.OpenMemory(), std::move(dirty),
                                std::move(vmm), options, Clock::Monotonic());
    EXPECT_TRUE(migration.ok()) << migration.status();
    migration_ = *std::move(migration);
    directory_.Add("m", "vm", migration_);

    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port);
    builder.SetMaxReceiveMessageSize(kDataPlaneRequestBytesMax);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    EXPECT_NE(server_, nullptr);
    stub_ = v1::DataPlaneService::NewStub(grpc::CreateChannel(
        absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  }

  ~Source() {
    migration_->Cancel().IgnoreError();
    if (switcher_.joinable()) switcher_.join();
    server_->Shutdown();
  }

  TestGuest& guest() { return guest_; }
  SourceMigration& migration() { return *migration_; }
  v1::DataPlaneService::Stub& stub() { return *stub_; }
  bool completed() const { return completed_; }
  void set_device_state(std::string state) { device_state_ = std::move(state); }

  void Write(uint64_t page, uint64_t value) {
    guest_.Write(page, value);
    dirty_->Mark(PageIndex(page));
  }
  // The guest's last words.
  void set_on_pause(std::function<void()> on_pause) {
    on_pause_ = std::move(on_pause);
  }
  void RequestSwitchOver() {
    if (switcher_.joinable()) return;
    switcher_ =
        std::thread([this] { migration_->RequestSwitchOver().IgnoreError(); });
  }

  void Forget() { directory_.Remove("m"); }

  // What the observer was told.
  std::vector<SessionAttempt> attempts() const {
    const std::lock_guard<std::mutex> lock(told_mutex_);
    return attempts_;
  }
  std::vector<std::pair<DataPlaneLane, absl::Status>> AwaitEndedStreams(
      size_t count) {
    std::unique_lock<std::mutex> lock(told_mutex_);
    told_.wait(lock, [&] { return ended_.size() >= count; });
    return ended_;
  }

  v1::OpenSessionRequest OpenRequest(uint64_t epoch = 1) const {
    v1::OpenSessionRequest request;
    request.set_protocol_version(1);
    request.set_migration_id("m");
    request.set_vm_name("vm");
    request.set_epoch(epoch);
    for (const Region& region : guest_.layout().regions()) {
      v1::RamRegion* out = request.mutable_layout()->add_regions();
      out->set_name(region.name);
      out->set_start_bytes(region.start.value());
      out->set_length_bytes(region.length.value());
      out->set_page_size_bytes(kPageSize);
    }
    return request;
  }
  grpc::Status Open(const v1::OpenSessionRequest& request,
                    v1::OpenSessionResponse* response) {
    grpc::ClientContext context;
    return stub_->OpenSession(&context, request, response);
  }
  // The session of `epoch`.
  v1::SessionRef OpenSession(uint64_t epoch = 1) {
    v1::OpenSessionResponse response;
    const grpc::Status status = Open(OpenRequest(epoch), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.protocol_version(), 1u);
    EXPECT_EQ(response.epoch(), epoch);
    v1::SessionRef session;
    session.set_session_id(response.session_id());
    session.set_epoch(response.epoch());
    return session;
  }
  // Serves the file behind the guest as snapshot "s".
  void ServeSnapshot() {
    auto snapshot =
        ServedSnapshot::Open("s", absl::StrCat("/proc/self/fd/", guest_.fd()));
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    ASSERT_TRUE(snapshots_.Add(*std::move(snapshot)).ok());
  }
  void ServeSnapshot(const std::string& path) {
    auto snapshot = ServedSnapshot::Open("s", path);
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    ASSERT_TRUE(snapshots_.Add(*std::move(snapshot)).ok());
  }
  grpc::Status OpenSnapshot(const v1::OpenSnapshotRequest& request,
                            v1::OpenSnapshotResponse* response) {
    grpc::ClientContext context;
    return stub_->OpenSnapshot(&context, request, response);
  }
  // A session of it, in place of `lost`.
  v1::SessionRef OpenSnapshot(const v1::SessionRef& lost = {},
                              bool any_order = false) {
    v1::OpenSnapshotRequest request;
    request.set_urgent_any_order(any_order);
    request.set_protocol_version(1);
    request.set_snapshot_name("s");
    *request.mutable_lost() = lost;
    v1::OpenSnapshotResponse response;
    const grpc::Status status = OpenSnapshot(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.protocol_version(), 1u);
    return response.session();
  }
  size_t snapshot_sessions() const { return snapshots_.sessions(); }
  grpc::Status Complete(const v1::SessionRef& session) {
    grpc::ClientContext context;
    v1::CompleteSessionRequest request;
    v1::CompleteSessionResponse response;
    *request.mutable_session() = session;
    return stub_->CompleteSession(&context, request, &response);
  }

 private:
  DataPlaneObserver Observer() {
    return {.session =
                [this](const SessionAttempt& attempt) {
                  const std::lock_guard<std::mutex> lock(told_mutex_);
                  attempts_.push_back(attempt);
                },
            .stream_ended =
                [this](DataPlaneLane lane, const absl::Status& status) {
                  const std::lock_guard<std::mutex> lock(told_mutex_);
                  ended_.emplace_back(lane, status);
                  told_.notify_all();
                }};
  }

  TestGuest guest_;
  SimulatedDirtySource* dirty_ = nullptr;
  std::function<void()> on_pause_;
  std::string device_state_ = "device state";
  std::atomic<bool> completed_{false};
  std::shared_ptr<SourceMigration> migration_;
  SessionDirectory directory_;
  SnapshotSessions snapshots_{Clock::Monotonic()};
  mutable std::mutex told_mutex_;
  std::condition_variable told_;
  std::vector<SessionAttempt> attempts_;  // guarded by told_mutex_
  // Guarded by told_mutex_.
  std::vector<std::pair<DataPlaneLane, absl::Status>> ended_;
  DataPlaneService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::DataPlaneService::Stub> stub_;
  std::thread switcher_;
};

// One urgent stream.
class Urgent {
 public:
  explicit Urgent(Source& source) : call_(source.stub().Urgent(&context_)) {}

  std::optional<v1::UrgentResponse> Ask(const v1::SessionRef& session,
                                        const std::vector<uint64_t>& offsets) {
    v1::UrgentRequest request;
    *request.mutable_session() = session;
    for (uint64_t offset : offsets) request.add_ram_offsets_bytes(offset);
    return Ask(request);
  }
  std::optional<v1::UrgentResponse> Ask(const v1::UrgentRequest& request) {
    v1::UrgentResponse response;
    if (!call_->Write(request) || !call_->Read(&response)) return std::nullopt;
    return response;
  }
  grpc::Status Finish() {
    call_->WritesDone();
    v1::UrgentResponse response;
    while (call_->Read(&response)) {
    }
    return call_->Finish();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<UrgentCall> call_;
};

// One bulk stream, and the destination behind it.
class Bulk {
 public:
  explicit Bulk(Source& source)
      : source_(source), call_(source.stub().Bulk(&context_)) {}

  bool Say(const v1::SessionRef& session, v1::BulkRequest request) {
    *request.mutable_session() = session;
    return call_->Write(request);
  }
  void Attach(const v1::SessionRef& session) {
    session_ = session;
    v1::BulkRequest request;
    request.mutable_attach();
    EXPECT_TRUE(Say(session, request));
  }
  std::optional<v1::BulkResponse> Read() {
    v1::BulkResponse response;
    if (!call_->Read(&response)) return std::nullopt;
    return response;
  }
  grpc::Status Finish() {
    call_->WritesDone();
    while (Read().has_value()) {
    }
    return call_->Finish();
  }

  // Answers rounds and takes in the switch-over, up to its end.
  void ReceiveSwitchOver() {
    while (true) {
      const std::optional<v1::BulkResponse> response = Read();
      ASSERT_TRUE(response.has_value()) << "the stream has ended";
      switch (response->message_case()) {
        case v1::BulkResponse::kPages:
          Store(response->pages());
          break;
        case v1::BulkResponse::kRoundEnd:
          AnswerRound(response->round_end().round());
          break;
        case v1::BulkResponse::kStale:
          StoreStale(response->stale());
          break;
        case v1::BulkResponse::kEarlyDiscard:
          stale.clear();
          stale_pieces.clear();
          ++early_discards;
          AnswerRound(response->early_discard().round());
          break;
        case v1::BulkResponse::kDeviceState:
          ++device_state_pieces;
          EXPECT_LE(response->device_state().data().size(), 256u << 10);
          device_state += response->device_state().data();
          break;
        case v1::BulkResponse::kSwitchOver:
          end = response->switch_over();
          return;
        default:
          FAIL() << "unexpected: " << response->ShortDebugString();
      }
    }
  }
  void SayReady() {
    v1::BulkRequest request;
    request.mutable_switch_over_ready()->set_discarded_pages(stale.size());
    EXPECT_TRUE(Say(session_, request));
  }
  void ExpectCommit() {
    const std::optional<v1::BulkResponse> response = Read();
    ASSERT_TRUE(response.has_value());
    EXPECT_TRUE(response->has_commit());
  }
  void SayFetch(uint64_t offset, uint64_t pages) {
    v1::BulkRequest request;
    request.mutable_fetch()->set_ram_offset_bytes(offset);
    request.mutable_fetch()->set_page_count(pages);
    EXPECT_TRUE(Say(session_, request));
  }

  // Checks runs as a destination must, and keeps their pages.
  template <typename Runs>
  void StoreRuns(const Runs& runs) {
    for (const v1::PageRun& run : runs) {
      EXPECT_EQ(run.ram_offset_bytes() % kPageSize, 0u);
      EXPECT_TRUE(run.data().empty() ||
                  run.data().size() == run.page_count() * kPageSize);
      EXPECT_EQ(run.crc32c(), PlacedCrc(run.ram_offset_bytes(),
                                        run.page_count(), run.data()));
      if (!keep_pages) continue;
      for (uint64_t i = 0; i < run.page_count(); ++i) {
        pages[run.ram_offset_bytes() / kPageSize + i] =
            PageInRun(run.data(), i);
      }
    }
  }

  // What has been received.
  std::map<uint64_t, std::string> pages;
  std::set<uint64_t> stale;
  int early_discards = 0;
  std::vector<std::pair<uint64_t, uint64_t>> stale_pieces;
  std::string device_state;
  int device_state_pieces = 0;
  v1::SwitchOver end;
  uint32_t rounds = 0;
  // False for a guest too large to keep.
  bool keep_pages = true;

 private:
  void Store(const v1::PageBatch& batch) {
    uint64_t next = 0;
    uint64_t data_pages = 0;
    for (const v1::PageRun& run : batch.runs()) {
      EXPECT_GE(run.ram_offset_bytes(), next) << "not ascending";
      next = run.ram_offset_bytes() + run.page_count() * kPageSize;
      if (!run.data().empty()) data_pages += run.page_count();
    }
    EXPECT_LE(data_pages, 256u);
    StoreRuns(batch.runs());
  }
  void AnswerRound(uint32_t round) {
    rounds = round;
    // The first round has brought everything.
    source_.RequestSwitchOver();
    v1::BulkRequest request;
    request.mutable_round_ack()->set_round(round);
    EXPECT_TRUE(Say(session_, request));
  }
  void StoreStale(const v1::StaleBitmap& piece) {
    EXPECT_EQ(piece.ram_offset_bytes() % (64 * kPageSize), 0u);
    EXPECT_EQ(piece.bits().size() % 8, 0u);
    EXPECT_LE(piece.bits().size(), 256u << 10);
    EXPECT_EQ(piece.crc32c(), PlacedCrc(piece.ram_offset_bytes(),
                                        piece.bits().size(), piece.bits()));
    stale_pieces.emplace_back(piece.ram_offset_bytes(), piece.bits().size());
    for (uint64_t bit = 0; bit < piece.bits().size() * 8; ++bit) {
      if ((static_cast<uint8_t>(piece.bits()[bit / 8]) >> (bit % 8)) & 1) {
        stale.insert(piece.ram_offset_bytes() / kPageSize + bit);
      }
    }
  }

  Source& source_;
  grpc::ClientContext context_;
  std::unique_ptr<BulkCall> call_;
  v1::SessionRef session_;
};

// `status` has this code and this message.
void ExpectStatus(const grpc::Status& status, StatusCode code,
                  const std::string& message) {
  EXPECT_EQ(status.error_code(), code);
  EXPECT_EQ(status.error_message(), message);
}

v1::SessionRef WithEpoch(v1::SessionRef session, uint64_t epoch) {
  session.set_epoch(epoch);
  return session;
}
v1::SessionRef WithId(v1::SessionRef session, uint64_t id) {
  session.set_session_id(id);
  return session;
}

// --- OpenSession.

TEST(DataPlaneServiceOpenTest, VersionsOfTomorrowAndOfNeverAreRefused) {
  Source source({4});
  v1::OpenSessionResponse response;
  for (uint32_t version : {0, 2}) {
    v1::OpenSessionRequest request = source.OpenRequest();
    request.set_protocol_version(version);
    ExpectStatus(source.Open(request, &response),
                 StatusCode::FAILED_PRECONDITION,
                 absl::StrCat("protocol version ", version,
                              " is unknown to this source, which speaks 1 to "
                              "1: upgrade the older of the two daemons"));
  }
}

TEST(DataPlaneServiceOpenTest, TraceIdsAreCheckedAndToldToTheObserver) {
  Source source({4});
  v1::OpenSessionResponse response;
  v1::OpenSessionRequest request = source.OpenRequest();
  request.set_trace_id("4bf92f3577b34da6a3ce929d0e0e473");
  ExpectStatus(source.Open(request, &response), StatusCode::INVALID_ARGUMENT,
               "trace_id must be 32 digits of 0-9a-f, not all of them 0");
  request.set_trace_id("4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_TRUE(source.Open(request, &response).ok());
  const std::vector<SessionAttempt> attempts = source.attempts();
  ASSERT_EQ(attempts.size(), 2u);
  EXPECT_FALSE(attempts[0].status.ok());
  EXPECT_TRUE(attempts[1].status.ok());
  EXPECT_EQ(attempts[1].trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(attempts[1].migration_id, "m");
  EXPECT_EQ(attempts[1].vm_name, "vm");
  EXPECT_EQ(attempts[1].epoch, 1u);
  EXPECT_EQ(attempts[1].peer.find("ipv4:127.0.0.1:"), 0u) << attempts[1].peer;
}

TEST(DataPlaneServiceOpenTest, TheObserverIsToldHowStreamsEnd) {
  Source source({4});
  v1::SessionRef unknown;
  unknown.set_session_id(1);
  {
    grpc::ClientContext context;
    const auto call = source.stub().Urgent(&context);
    v1::UrgentRequest request;
    *request.mutable_session() = unknown;
    call->Write(request);
    call->WritesDone();
    EXPECT_FALSE(call->Finish().ok());
  }
  const auto ended = source.AwaitEndedStreams(1);
  EXPECT_EQ(ended[0].first, DataPlaneLane::kUrgent);
  EXPECT_TRUE(absl::IsNotFound(ended[0].second)) << ended[0].second;
  {
    grpc::ClientContext context;
    const auto call = source.stub().Urgent(&context);
    call->WritesDone();
    EXPECT_TRUE(call->Finish().ok());
  }
  EXPECT_TRUE(source.AwaitEndedStreams(2)[1].second.ok());
}

TEST(DataPlaneServiceOpenTest, UnknownMigrationAndOtherVm) {
  Source source({4});
  v1::OpenSessionResponse response;
  v1::OpenSessionRequest request = source.OpenRequest();
  request.set_migration_id("x");
  ExpectStatus(source.Open(request, &response), StatusCode::NOT_FOUND,
               "the source knows no migration \"x\": create it there first");
  request = source.OpenRequest();
  request.set_vm_name("y");
  ExpectStatus(source.Open(request, &response), StatusCode::FAILED_PRECONDITION,
               "migration \"m\" is of VM \"vm\" at the source, not of \"y\"");
}

TEST(DataPlaneServiceOpenTest, LayoutsThatAreNone) {
  Source source({4, 4});
  v1::OpenSessionResponse response;
  v1::OpenSessionRequest request = source.OpenRequest();
  request.mutable_layout()->mutable_regions(1)->set_start_bytes(0x3000);
  ExpectStatus(source.Open(request, &response), StatusCode::INVALID_ARGUMENT,
               "region \"r1\" starts at RAM offset 0x3000; regions lie end to "
               "end from 0, so it has to start at RAM offset 0x4000");
  request = source.OpenRequest();
  request.mutable_layout()->mutable_regions(0)->set_length_bytes(0x3800);
  ExpectStatus(source.Open(request, &response), StatusCode::INVALID_ARGUMENT,
               "region \"r0\" has a length of 14KiB; make it a positive "
               "multiple of 4KiB");
  request = source.OpenRequest();
  request.mutable_layout()->mutable_regions(0)->set_page_size_bytes(2 << 20);
  ExpectStatus(source.Open(request, &response), StatusCode::INVALID_ARGUMENT,
               "region \"r0\" has pages of 2MiB; only 4KiB is supported");
  request = source.OpenRequest();
  request.mutable_layout()->clear_regions();
  ExpectStatus(source.Open(request, &response), StatusCode::INVALID_ARGUMENT,
               "a VM has 1 to 64 regions of RAM, not 0");
  request = source.OpenRequest();
  request.mutable_layout()->mutable_regions(1)->set_length_bytes(UINT64_MAX &
                                                                 ~0xFFFull);
  EXPECT_EQ(source.Open(request, &response).error_code(),
            StatusCode::INVALID_ARGUMENT);
}

TEST(DataPlaneServiceOpenTest, AnotherLayout) {
  Source source({4, 4});
  v1::OpenSessionResponse response;
  v1::OpenSessionRequest request = source.OpenRequest();
  request.mutable_layout()->mutable_regions(1)->set_name("rom");
  ExpectStatus(source.Open(request, &response), StatusCode::FAILED_PRECONDITION,
               "the VM's RAM is laid out differently: the name of region 1 is "
               "\"r1\" at the source and \"rom\" at the destination; configure "
               "both alike");
}

TEST(DataPlaneServiceOpenTest, IdempotentForTheSameEpoch) {
  Source source({4});
  const v1::SessionRef first = source.OpenSession(3);
  const v1::SessionRef second = source.OpenSession(3);
  EXPECT_EQ(first.session_id(), second.session_id());
  v1::OpenSessionResponse response;
  ExpectStatus(source.Open(source.OpenRequest(2), &response),
               StatusCode::FAILED_PRECONDITION,
               "epoch 2 is not higher than 3, which is taken: open the session "
               "with a higher one");
}

TEST(DataPlaneServiceOpenTest, AfterTheEnd) {
  Source source({4});
  ASSERT_TRUE(source.migration().Cancel().ok());
  v1::OpenSessionResponse response;
  ExpectStatus(source.Open(source.OpenRequest(), &response),
               StatusCode::ABORTED,
               "the migration has ended: cancelled by request; the guest goes "
               "on at the source");
}

TEST(DataPlaneServiceOpenTest, AnOversizedRequestIsRefusedUnread) {
  Source source({4});
  v1::OpenSessionResponse response;
  v1::OpenSessionRequest request = source.OpenRequest();
  request.set_migration_id(std::string(kDataPlaneRequestBytesMax, 'x'));
  EXPECT_EQ(source.Open(request, &response).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  // The largest layout there may be is far from that.
  request = source.OpenRequest();
  request.clear_layout();
  for (uint64_t i = 0; i < kMaxRegions; ++i) {
    v1::RamRegion* region = request.mutable_layout()->add_regions();
    region->set_name(std::string(kMaxNameBytes - 2, 'x') +
                     absl::StrCat(10 + i));
    region->set_start_bytes(i << 38);
    region->set_length_bytes(uint64_t{1} << 38);
    region->set_page_size_bytes(kPageSize);
  }
  EXPECT_EQ(source.Open(request, &response).error_code(),
            StatusCode::FAILED_PRECONDITION);
}

// --- Streams that are refused.

TEST(DataPlaneServiceBulkTest, FirstMessageMustBeAttach) {
  Source source({4});
  const v1::SessionRef session = source.OpenSession();
  Bulk bulk(source);
  v1::BulkRequest request;
  request.mutable_round_ack()->set_round(1);
  bulk.Say(session, request);
  ExpectStatus(bulk.Finish(), StatusCode::INVALID_ARGUMENT,
               "the first message of a bulk stream must be attach");
  EXPECT_EQ(source.migration().Snapshot().phase, SourcePhase::kPreparing);
}

TEST(DataPlaneServiceBulkTest, MustNameTheSession) {
  Source source({4});
  const v1::SessionRef session = source.OpenSession(5);
  for (uint64_t epoch : {4, 6}) {
    Bulk bulk(source);
    bulk.Attach(WithEpoch(session, epoch));
    ExpectStatus(bulk.Finish(), StatusCode::FAILED_PRECONDITION,
                 absl::StrCat("epoch ", epoch,
                              " is not the newest, which is "
                              "5: another session has taken over"));
  }
  Bulk bulk(source);
  bulk.Attach(WithId(session, session.session_id() + 1));
  ExpectStatus(bulk.Finish(), StatusCode::NOT_FOUND,
               "no such session: open one");
}

TEST(DataPlaneServiceBulkTest, EveryMessageMustNameTheSession) {
  Source source({4});
  const v1::SessionRef session = source.OpenSession(5);
  Bulk bulk(source);
  bulk.Attach(session);
  v1::BulkRequest request;
  request.mutable_round_ack()->set_round(1);
  bulk.Say(WithEpoch(session, 4), request);
  ExpectStatus(bulk.Finish(), StatusCode::FAILED_PRECONDITION,
               "a message of the bulk stream names another session or epoch");
}

TEST(DataPlaneServiceBulkTest, AttachComesOnce) {
  Source source({4});
  const v1::SessionRef session = source.OpenSession();
  Bulk bulk(source);
  bulk.Attach(session);
  bulk.Attach(session);
  ExpectStatus(bulk.Finish(), StatusCode::INVALID_ARGUMENT,
               "a message of the bulk stream has no content that is due here");
}

TEST(DataPlaneServiceUrgentTest, MustNameTheSession) {
  Source source({4});
  const v1::SessionRef session = source.OpenSession(5);
  for (uint64_t epoch : {4, 6}) {
    Urgent urgent(source);
    EXPECT_EQ(urgent.Ask(WithEpoch(session, epoch), {}), std::nullopt);
    EXPECT_EQ(urgent.Finish().error_code(), StatusCode::FAILED_PRECONDITION);
  }
  Urgent urgent(source);
  EXPECT_EQ(urgent.Ask(WithId(session, session.session_id() + 1), {}),
            std::nullopt);
  EXPECT_EQ(urgent.Finish().error_code(), StatusCode::NOT_FOUND);
}

TEST(DataPlaneServiceUrgentTest, NothingBeforeTheCommit) {
  Source source({4});
  const v1::SessionRef session = source.OpenSession();
  Urgent urgent(source);
  EXPECT_EQ(urgent.Ask(session, {0}), std::nullopt);
  ExpectStatus(urgent.Finish(), StatusCode::FAILED_PRECONDITION,
               "the guest has not been handed over yet: its pages still "
               "change");
}

TEST(DataPlaneServiceCompleteTest, Refusals) {
  Source source({4});
  const v1::SessionRef session = source.OpenSession(5);
  ExpectStatus(source.Complete(session), StatusCode::FAILED_PRECONDITION,
               "the guest has not been handed over yet: nothing is complete");
  EXPECT_EQ(source.Complete(WithEpoch(session, 4)).error_code(),
            StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(source.Complete(WithId(session, 0)).error_code(),
            StatusCode::NOT_FOUND);
  EXPECT_FALSE(source.completed());
}

// --- Whole migrations.

// A migration that has been committed by hand.
class CommittedTest : public testing::Test {
 protected:
  static constexpr uint64_t kPages = 192;

  CommittedTest() : source_({100, 92}) {
    for (uint64_t page = 0; page < 150; ++page) {
      source_.guest().Write(page, 1000 + page);
    }
    source_.set_on_pause([this] {
      for (uint64_t page : {5, 70, 191}) source_.Write(page, 7000 + page);
    });
  }

  void Commit() {
    session_ = source_.OpenSession();
    bulk_ = std::make_unique<Bulk>(source_);
    bulk_->Attach(session_);
    ASSERT_NO_FATAL_FAILURE(bulk_->ReceiveSwitchOver());
    bulk_->SayReady();
    ASSERT_NO_FATAL_FAILURE(bulk_->ExpectCommit());
  }

  Source source_;
  v1::SessionRef session_;
  std::unique_ptr<Bulk> bulk_;
};

TEST_F(CommittedTest, AMigrationByHand) {
  std::string device_state;
  for (int i = 0; i < 600 << 10; ++i) {
    device_state.push_back(static_cast<char>(i * 31 / 7));
  }
  source_.set_device_state(device_state);
  ASSERT_NO_FATAL_FAILURE(Commit());
  EXPECT_GE(bulk_->rounds, 1u);
  // The stale set is what the guest wrote last, in one piece of three words.
  EXPECT_EQ(bulk_->stale, (std::set<uint64_t>{5, 70, 191}));
  EXPECT_EQ(bulk_->stale_pieces,
            (std::vector<std::pair<uint64_t, uint64_t>>{{0, 24}}));
  EXPECT_EQ(bulk_->end.stale_pages(), 3u);
  EXPECT_EQ(bulk_->early_discards, 2);
  EXPECT_EQ(bulk_->device_state_pieces, 3);
  EXPECT_TRUE(bulk_->device_state == device_state);
  EXPECT_EQ(bulk_->end.device_state_bytes(), device_state.size());
  EXPECT_EQ(bulk_->end.device_state_crc32c(), PlainCrc32c(device_state));
  // Every page that is not stale is here and right.
  EXPECT_EQ(bulk_->pages.size(), kPages);
  for (const auto& [page, bytes] : bulk_->pages) {
    EXPECT_EQ(bytes == source_.guest().Page(page), !bulk_->stale.contains(page))
        << page;
  }

  v1::BulkRequest resumed;
  resumed.mutable_guest_resumed()->set_vmm_load_resume_us(1);
  EXPECT_TRUE(bulk_->Say(session_, resumed));
  // One stale page by the bulk lane, two by the urgent one.
  bulk_->SayFetch(5 * kPageSize, 1);
  const std::optional<v1::BulkResponse> fetched = bulk_->Read();
  ASSERT_TRUE(fetched.has_value() && fetched->has_pages());
  bulk_->StoreRuns(fetched->pages().runs());
  Urgent urgent(source_);
  const std::optional<v1::UrgentResponse> faulted =
      urgent.Ask(session_, {191 * kPageSize, 70 * kPageSize});
  ASSERT_TRUE(faulted.has_value());
  ASSERT_EQ(faulted->runs_size(), 2);
  EXPECT_EQ(faulted->runs(0).ram_offset_bytes(), 191 * kPageSize);
  EXPECT_EQ(faulted->runs(1).ram_offset_bytes(), 70 * kPageSize);
  bulk_->StoreRuns(faulted->runs());
  for (const auto& [page, bytes] : bulk_->pages) {
    EXPECT_TRUE(bytes == source_.guest().Page(page)) << page;
  }

  EXPECT_TRUE(source_.Complete(session_).ok());
  EXPECT_TRUE(source_.Complete(session_).ok());
  EXPECT_TRUE(source_.completed());
  EXPECT_TRUE(urgent.Finish().ok());
  bulk_->Finish();
  const SourceSnapshot snapshot = source_.migration().Snapshot();
  EXPECT_EQ(snapshot.phase, SourcePhase::kCompleted);
  EXPECT_EQ(snapshot.faulted, PageCount(2));
  EXPECT_EQ(snapshot.background, PageCount(1));
  EXPECT_EQ(snapshot.discarded, PageCount(3));
}

// Proves that a destination that says it can take them is told of the pages
// written last, behind the commit, and in what form.
TEST_F(CommittedTest, TellsWhatWasDirtiedLast) {
  v1::OpenSessionRequest request = source_.OpenRequest();
  request.set_recently_dirtied(true);
  v1::OpenSessionResponse response;
  ASSERT_TRUE(source_.Open(request, &response).ok());
  session_.set_session_id(response.session_id());
  session_.set_epoch(1);
  bulk_ = std::make_unique<Bulk>(source_);
  bulk_->Attach(session_);
  ASSERT_NO_FATAL_FAILURE(bulk_->ReceiveSwitchOver());
  bulk_->SayReady();
  ASSERT_NO_FATAL_FAILURE(bulk_->ExpectCommit());
  const std::optional<v1::BulkResponse> told = bulk_->Read();
  ASSERT_TRUE(told.has_value() && told->has_recently_dirtied());
  const v1::RecentlyDirtied& dirtied = told->recently_dirtied();
  ASSERT_EQ(dirtied.ram_offsets_bytes_size(), 3);
  ASSERT_EQ(dirtied.page_counts_size(), 3);
  int i = 0;
  for (uint64_t page : {5, 70, 191}) {
    EXPECT_EQ(dirtied.ram_offsets_bytes(i), page * kPageSize);
    EXPECT_EQ(dirtied.page_counts(i), 1u);
    ++i;
  }
  EXPECT_TRUE(source_.Complete(session_).ok());
  bulk_->Finish();
}

// Descriptors of this process that are of the same file as `fd`.
int DescriptorsOf(int fd) {
  struct stat wanted = {};
  EXPECT_EQ(::fstat(fd, &wanted), 0);
  int count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/self/fd")) {
    struct stat info = {};
    count += ::stat(entry.path().c_str(), &info) == 0 &&
             info.st_dev == wanted.st_dev && info.st_ino == wanted.st_ino;
  }
  return count;
}

// A peer that keeps its stream must not keep the RAM of a VM that has ended.
TEST_F(CommittedTest, AnUrgentStreamKeepsNoMemory) {
  ASSERT_NO_FATAL_FAILURE(Commit());
  Urgent urgent(source_);
  ASSERT_TRUE(urgent.Ask(session_, {0}).has_value());
  const int before = DescriptorsOf(source_.guest().fd());
  EXPECT_TRUE(source_.Complete(session_).ok());
  EXPECT_LT(DescriptorsOf(source_.guest().fd()), before);
  EXPECT_TRUE(urgent.Finish().ok());
  bulk_->Finish();
}

TEST_F(CommittedTest, ASessionHasSoManyUrgentStreams) {
  ASSERT_NO_FATAL_FAILURE(Commit());
  std::vector<std::unique_ptr<Urgent>> streams;
  for (size_t i = 0; i < kUrgentStreamsMax; ++i) {
    streams.push_back(std::make_unique<Urgent>(source_));
    EXPECT_TRUE(streams.back()->Ask(session_, {0}).has_value()) << i;
  }
  Urgent one_more(source_);
  EXPECT_FALSE(one_more.Ask(session_, {0}).has_value());
  EXPECT_EQ(one_more.Finish().error_code(), StatusCode::RESOURCE_EXHAUSTED);
  // A stream that ends makes room.
  EXPECT_TRUE(streams.back()->Finish().ok());
  streams.pop_back();
  Urgent another(source_);
  EXPECT_TRUE(another.Ask(session_, {0}).has_value());
  EXPECT_TRUE(another.Finish().ok());
  for (const auto& stream : streams) EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(source_.Complete(session_).ok());
  bulk_->Finish();
}

TEST(DataPlaneServiceStreamTest, SilentStreamsAreEnded) {
  Source source({16}, std::chrono::milliseconds(1));
  grpc::ClientContext urgent_context;
  std::unique_ptr<UrgentCall> urgent = source.stub().Urgent(&urgent_context);
  v1::UrgentResponse nothing;
  EXPECT_FALSE(urgent->Read(&nothing));
  EXPECT_EQ(urgent->Finish().error_code(), StatusCode::CANCELLED);
  grpc::ClientContext bulk_context;
  std::unique_ptr<BulkCall> bulk = source.stub().Bulk(&bulk_context);
  v1::BulkResponse none;
  EXPECT_FALSE(bulk->Read(&none));
  EXPECT_FALSE(bulk->Finish().ok());
}

// A destination that lost the commit learns of it from its next session.
TEST_F(CommittedTest, TheNextSessionIsToldOfTheCommit) {
  v1::OpenSessionResponse response;
  ASSERT_TRUE(source_.Open(source_.OpenRequest(), &response).ok());
  EXPECT_FALSE(response.committed());
  ASSERT_NO_FATAL_FAILURE(Commit());
  ASSERT_TRUE(source_.Open(source_.OpenRequest(2), &response).ok());
  EXPECT_TRUE(response.committed());
  // The stream of the session before is over.
  EXPECT_FALSE(bulk_->Finish().ok());
  const v1::SessionRef session = source_.OpenSession(2);
  Bulk bulk(source_);
  bulk.Attach(session);
  bulk.SayFetch(70 * kPageSize, 2);
  const std::optional<v1::BulkResponse> fetched = bulk.Read();
  ASSERT_TRUE(fetched.has_value() && fetched->has_pages());
  bulk.StoreRuns(fetched->pages().runs());
  EXPECT_TRUE(bulk.pages[70] == source_.guest().Page(70));
  EXPECT_TRUE(bulk.pages[71] == source_.guest().Page(71));
  // Nor is its epoch good for anything else.
  Urgent urgent(source_);
  EXPECT_EQ(urgent.Ask(session_, {0}), std::nullopt);
  EXPECT_EQ(urgent.Finish().error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(source_.Complete(session_).error_code(),
            StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(source_.Complete(session).ok());
}

// Streams that say nothing more would each keep a thread of the listener,
// epoch after epoch.
TEST_F(CommittedTest, ANewEpochEndsSilentUrgentStreams) {
  ASSERT_NO_FATAL_FAILURE(Commit());
  for (uint64_t epoch = 2; epoch < 5; ++epoch) {
    std::vector<std::unique_ptr<Urgent>> streams;
    for (size_t i = 0; i < kUrgentStreamsMax; ++i) {
      streams.push_back(std::make_unique<Urgent>(source_));
      EXPECT_TRUE(streams.back()->Ask(session_, {0}).has_value()) << i;
    }
    session_ = source_.OpenSession(epoch);
    for (const auto& stream : streams) {
      EXPECT_EQ(stream->Finish().error_code(), StatusCode::CANCELLED);
    }
  }
  EXPECT_TRUE(source_.Complete(session_).ok());
  bulk_->Finish();
}

// Nor once nobody can end the migration any more.
TEST_F(CommittedTest, AForgottenMigrationHasNoStreams) {
  ASSERT_NO_FATAL_FAILURE(Commit());
  Urgent urgent(source_);
  EXPECT_TRUE(urgent.Ask(session_, {0}).has_value());
  EXPECT_TRUE(source_.Complete(session_).ok());
  source_.Forget();
  EXPECT_EQ(urgent.Finish().error_code(), StatusCode::CANCELLED);
  EXPECT_EQ(bulk_->Finish().error_code(), StatusCode::CANCELLED);
}

// A request for another page than was asked for is answered with a right one.
TEST_F(CommittedTest, DamagedRequestsEndTheirStream) {
  ASSERT_NO_FATAL_FAILURE(Commit());
  v1::UrgentRequest urgent_request;
  *urgent_request.mutable_session() = session_;
  urgent_request.add_ram_offsets_bytes(5 * kPageSize);
  urgent_request.set_crc32c(NumbersCrc32c({5 * kPageSize}));
  {
    Urgent urgent(source_);
    EXPECT_TRUE(urgent.Ask(urgent_request).has_value());
    urgent_request.set_ram_offsets_bytes(0, 4 * kPageSize);
    EXPECT_EQ(urgent.Ask(urgent_request), std::nullopt);
    EXPECT_EQ(urgent.Finish().error_code(), StatusCode::DATA_LOSS);
    // All of it left out, as by a damaged tag.
    Urgent empty(source_);
    urgent_request.clear_ram_offsets_bytes();
    EXPECT_EQ(empty.Ask(urgent_request), std::nullopt);
    EXPECT_EQ(empty.Finish().error_code(), StatusCode::DATA_LOSS);
  }
  v1::BulkRequest fetch;
  fetch.mutable_fetch()->set_ram_offset_bytes(5 * kPageSize);
  fetch.mutable_fetch()->set_page_count(1);
  fetch.mutable_fetch()->set_crc32c(NumbersCrc32c({5 * kPageSize, 2}));
  v1::BulkRequest ack;
  ack.mutable_round_ack()->set_crc32c(NumbersCrc32c({0, 1}));
  uint64_t epoch = 1;
  for (const v1::BulkRequest& request : {fetch, ack}) {
    Bulk bulk(source_);
    const v1::SessionRef session = source_.OpenSession(++epoch);
    bulk.Attach(session);
    EXPECT_TRUE(bulk.Say(session, request));
    EXPECT_EQ(bulk.Finish().error_code(), StatusCode::DATA_LOSS);
  }
}

TEST_F(CommittedTest, UrgentRequestsThatAreRefused) {
  ASSERT_NO_FATAL_FAILURE(Commit());
  const std::vector<uint64_t> max(64, 5 * kPageSize);
  std::vector<uint64_t> too_many = max;
  too_many.push_back(0);
  const struct {
    std::vector<uint64_t> offsets;
    StatusCode code;
    std::string message;
  } kCases[] = {
      {{1},
       StatusCode::INVALID_ARGUMENT,
       "RAM offset 0x1 is not a multiple of 4096"},
      {{kPages * kPageSize},
       StatusCode::OUT_OF_RANGE,
       "pages [0xc0, 0xc1) is not inside the VM's RAM, which has 192 pages"},
      {too_many, StatusCode::INVALID_ARGUMENT,
       "a request may name 64 pages, not 65"},
  };
  for (const auto& c : kCases) {
    Urgent urgent(source_);
    const std::optional<v1::UrgentResponse> response =
        urgent.Ask(session_, max);
    ASSERT_TRUE(response.has_value());
    EXPECT_EQ(response->runs_size(), 64);
    EXPECT_EQ(urgent.Ask(session_, c.offsets), std::nullopt);
    ExpectStatus(urgent.Finish(), c.code, c.message);
  }
  {
    Urgent urgent(source_);
    EXPECT_EQ(urgent.Ask(session_, {UINT64_MAX & ~0xFFFull}), std::nullopt);
    EXPECT_EQ(urgent.Finish().error_code(), StatusCode::OUT_OF_RANGE);
  }
  // More than a message may hold is refused before anybody counts.
  Urgent urgent(source_);
  v1::UrgentRequest request;
  *request.mutable_session() = session_;
  for (int i = 0; i < kDataPlaneRequestBytesMax; ++i) {
    request.add_ram_offsets_bytes(0);
  }
  EXPECT_EQ(urgent.Ask(request), std::nullopt);
  EXPECT_EQ(urgent.Finish().error_code(), StatusCode::RESOURCE_EXHAUSTED);
  bulk_->Finish();
}

TEST_F(CommittedTest, FetchesThatAreRefused) {
  ASSERT_NO_FATAL_FAILURE(Commit());
  bulk_->Finish();
  const struct {
    uint64_t offset;
    uint64_t pages;
    StatusCode code;
  } kCases[] = {
      {1, 1, StatusCode::INVALID_ARGUMENT},
      {0, 0, StatusCode::OUT_OF_RANGE},
      {kPages * kPageSize, 1, StatusCode::OUT_OF_RANGE},
      {0, UINT64_MAX, StatusCode::OUT_OF_RANGE},
      {UINT64_MAX & ~0xFFFull, 1, StatusCode::OUT_OF_RANGE},
  };
  uint64_t epoch = 1;
  for (const auto& c : kCases) {
    Bulk bulk(source_);
    bulk.Attach(source_.OpenSession(++epoch));
    bulk.SayFetch(c.offset, c.pages);
    EXPECT_EQ(bulk.Finish().error_code(), c.code) << c.offset << " " << c.pages;
  }
  EXPECT_EQ(source_.migration().Snapshot().phase, SourcePhase::kPostcopy);
}

// The stale set of a large guest comes in pieces; what is clean between them
// does not come at all. (24 GiB, all of it holes.)
TEST(DataPlaneServiceBulkTest, StaleSetInPieces) {
  constexpr uint64_t kPiece = uint64_t{1} << 21;  // pages in 256 KiB of bits
  Source source({3 * kPiece});
  const std::set<uint64_t> last = {5, kPiece - 1, 2 * kPiece + 200,
                                   3 * kPiece - 1};
  source.set_on_pause([&] {
    for (uint64_t page : last) source.Write(page, page);
  });
  Bulk bulk(source);
  bulk.keep_pages = false;
  bulk.Attach(source.OpenSession());
  ASSERT_NO_FATAL_FAILURE(bulk.ReceiveSwitchOver());
  EXPECT_EQ(bulk.stale, last);
  EXPECT_EQ(bulk.end.stale_pages(), last.size());
  EXPECT_EQ(bulk.stale_pieces,
            (std::vector<std::pair<uint64_t, uint64_t>>{
                {0, 256 << 10},
                {(2 * kPiece + 192) * kPageSize, (kPiece - 192) / 8}}));
  EXPECT_EQ(bulk.device_state, "device state");
}

// --- Snapshots. Offsets are those of the file, where the guest's page 0 lies
// at kFileOffset.

constexpr uint64_t AtFile(uint64_t page) {
  return TestGuest::kFileOffset + page * kPageSize;
}

TEST(SnapshotServiceTest, BothLanesGiveWhatTheFileHas) {
  Source source({100});
  source.guest().Write(0, 1);
  source.guest().Write(1, 2);
  source.guest().Write(99, 3);
  source.ServeSnapshot();
  const v1::SessionRef session = source.OpenSnapshot();
  EXPECT_EQ(session.epoch(), 1u);
  Bulk bulk(source);
  bulk.Attach(session);
  Urgent urgent(source);
  const auto answer = urgent.Ask(session, {AtFile(1), AtFile(0), AtFile(50)});
  ASSERT_TRUE(answer.has_value());
  ASSERT_EQ(answer->runs_size(), 3);
  EXPECT_EQ(answer->runs(0).ram_offset_bytes(), AtFile(1));
  bulk.StoreRuns(answer->runs());
  EXPECT_EQ(bulk.pages[3 + 0], PageOfValue(1));
  EXPECT_EQ(bulk.pages[3 + 1], PageOfValue(2));
  EXPECT_TRUE(answer->runs(2).data().empty());
  bulk.SayFetch(AtFile(40), 60);
  const auto fetched = bulk.Read();
  ASSERT_TRUE(fetched.has_value() && fetched->has_pages());
  bulk.StoreRuns(fetched->pages().runs());
  EXPECT_EQ(bulk.pages[3 + 99], PageOfValue(3));
  EXPECT_EQ(bulk.pages.size(), 3u + 59u);
  EXPECT_TRUE(urgent.Finish().ok());
}

TEST(SnapshotServiceTest, AHugePageIsReadAsOne) {
  Source source({64});
  for (uint64_t page = 0; page < 64; ++page) source.guest().Write(page, 7);
  source.ServeSnapshot();
  const v1::SessionRef session = source.OpenSnapshot();
  std::vector<uint64_t> offsets;
  for (uint64_t page = 0; page < 64; ++page) offsets.push_back(AtFile(page));
  Urgent urgent(source);
  const auto answer = urgent.Ask(session, offsets);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->runs_size(), 1);
  offsets.push_back(AtFile(0));
  EXPECT_FALSE(urgent.Ask(session, offsets).has_value());
  EXPECT_EQ(urgent.Finish().error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST(SnapshotServiceTest, EndsWithItsStreams) {
  Source source({4});
  source.ServeSnapshot();
  const v1::SessionRef session = source.OpenSnapshot();
  EXPECT_EQ(source.snapshot_sessions(), 1u);
  Urgent urgent(source);
  ASSERT_TRUE(urgent.Ask(session, {0}).has_value());
  {
    Bulk bulk(source);
    bulk.Attach(session);
    bulk.SayFetch(0, 1);
    ASSERT_TRUE(bulk.Read().has_value());
    bulk.Finish();
    EXPECT_EQ(source.snapshot_sessions(), 1u);
  }
  EXPECT_TRUE(urgent.Finish().ok());
  EXPECT_EQ(source.snapshot_sessions(), 0u);
  Urgent late(source);
  EXPECT_FALSE(late.Ask(session, {0}).has_value());
  EXPECT_EQ(late.Finish().error_code(), StatusCode::NOT_FOUND);
}

TEST(SnapshotServiceTest, ANewEpochEndsTheStreamsBefore) {
  Source source({4});
  source.ServeSnapshot();
  const v1::SessionRef lost = source.OpenSnapshot();
  Urgent urgent(source);
  ASSERT_TRUE(urgent.Ask(lost, {0}).has_value());
  const v1::SessionRef session = source.OpenSnapshot(lost);
  EXPECT_EQ(session.session_id(), lost.session_id());
  EXPECT_EQ(session.epoch(), 2u);
  EXPECT_FALSE(urgent.Finish().ok());
  Urgent late(source);
  EXPECT_FALSE(late.Ask(lost, {0}).has_value());
  EXPECT_EQ(late.Finish().error_code(), StatusCode::FAILED_PRECONDITION);
  Urgent next(source);
  EXPECT_TRUE(next.Ask(session, {0}).has_value());
  EXPECT_FALSE(next.Ask(lost, {0}).has_value());
  EXPECT_EQ(next.Finish().error_code(), StatusCode::FAILED_PRECONDITION);
  // One that a source of before a restart had opened.
  v1::SessionRef unknown;
  unknown.set_session_id(4711);
  unknown.set_epoch(9);
  EXPECT_EQ(source.OpenSnapshot(unknown).epoch(), 1u);
}

TEST(SnapshotServiceTest, HostileRequestsEndTheStreamOnly) {
  Source source({4});
  source.ServeSnapshot();
  const v1::SessionRef session = source.OpenSnapshot();
  Urgent keeper(source);
  ASSERT_TRUE(keeper.Ask(session, {0}).has_value());
  const struct {
    uint64_t offset;
    uint64_t pages;
    StatusCode code;
  } kFetches[] = {{AtFile(4), 1, StatusCode::OUT_OF_RANGE},
                  {AtFile(3), 2, StatusCode::OUT_OF_RANGE},
                  {UINT64_MAX - kPageSize + 1, 64, StatusCode::OUT_OF_RANGE},
                  {0, 0, StatusCode::OUT_OF_RANGE},
                  {0, UINT64_MAX, StatusCode::OUT_OF_RANGE},
                  {1, 1, StatusCode::INVALID_ARGUMENT}};
  for (const auto& fetch : kFetches) {
    Bulk bulk(source);
    bulk.Attach(session);
    bulk.SayFetch(fetch.offset, fetch.pages);
    EXPECT_FALSE(bulk.Read().has_value());
    EXPECT_EQ(bulk.Finish().error_code(), fetch.code) << fetch.offset;
  }
  {
    Bulk bulk(source);
    bulk.Attach(session);
    bulk.SayReady();
    EXPECT_EQ(bulk.Finish().error_code(), StatusCode::INVALID_ARGUMENT);
  }
  Urgent second(source);
  EXPECT_FALSE(second.Ask(session, {0}).has_value());
  EXPECT_EQ(second.Finish().error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_FALSE(keeper.Ask(session, {AtFile(4)}).has_value());
  EXPECT_EQ(keeper.Finish().error_code(), StatusCode::OUT_OF_RANGE);
}

// A migration's session is none of a snapshot, and the other way round.
TEST(SnapshotServiceTest, WhatTheSourceDoesNotServe) {
  Source source({4});
  source.ServeSnapshot();
  v1::OpenSnapshotRequest request;
  v1::OpenSnapshotResponse response;
  request.set_protocol_version(2);
  request.set_snapshot_name("s");
  EXPECT_EQ(source.OpenSnapshot(request, &response).error_code(),
            StatusCode::FAILED_PRECONDITION);
  request.set_protocol_version(1);
  request.set_snapshot_name("t");
  EXPECT_EQ(source.OpenSnapshot(request, &response).error_code(),
            StatusCode::NOT_FOUND);
  EXPECT_EQ(source.Complete(source.OpenSnapshot()).error_code(),
            StatusCode::NOT_FOUND);
}

// Of a file whose pages nobody has read: every page once, with its bytes, in
// whatever answer.
TEST(SnapshotServiceTest, ColdPagesComeInAnyOrder) {
  constexpr uint64_t kPages = 64;
  const std::string path = testing::TempDir() + "/cold.mem";
  const UniqueFd file(
      ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  for (uint64_t page = 0; page < kPages; ++page) {
    const std::string bytes = PageOfValue(page + 1);
    ASSERT_EQ(::pwrite(file.get(), bytes.data(), bytes.size(),
                       static_cast<off_t>(page * kPageSize)),
              static_cast<ssize_t>(bytes.size()));
  }
  ASSERT_EQ(::fsync(file.get()), 0);
  ASSERT_EQ(::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  Source source({1});
  source.ServeSnapshot(path);
  ::unlink(path.c_str());
  const v1::SessionRef session = source.OpenSnapshot({}, /*any_order=*/true);
  grpc::ClientContext context;
  const std::unique_ptr<UrgentCall> call = source.stub().Urgent(&context);
  for (uint64_t page = 0; page < kPages; page += 2) {
    v1::UrgentRequest request;
    *request.mutable_session() = session;
    request.add_ram_offsets_bytes((kPages - 1 - page) * kPageSize);
    request.add_ram_offsets_bytes(page * kPageSize);
    ASSERT_TRUE(call->Write(request));
  }
  std::map<uint64_t, std::string> pages;
  while (pages.size() < kPages) {
    v1::UrgentResponse response;
    ASSERT_TRUE(call->Read(&response));
    for (const v1::PageRun& run : response.runs()) {
      EXPECT_EQ(run.crc32c(), PlacedCrc(run.ram_offset_bytes(),
                                        run.page_count(), run.data()));
      for (uint64_t i = 0; i < run.page_count(); ++i) {
        const uint64_t page = run.ram_offset_bytes() / kPageSize + i;
        EXPECT_TRUE(pages.emplace(page, PageInRun(run.data(), i)).second);
      }
    }
  }
  for (const auto& [page, bytes] : pages)
    EXPECT_EQ(bytes, PageOfValue(page + 1));
  call->WritesDone();
  EXPECT_TRUE(call->Finish().ok());
}

TEST(SnapshotServiceTest, ATruncatedFileIsALossAndNeverZeros) {
  Source source({100});
  source.guest().Write(99, 3);
  source.ServeSnapshot();
  const v1::SessionRef session = source.OpenSnapshot();
  Urgent urgent(source);
  ASSERT_TRUE(urgent.Ask(session, {0}).has_value());
  Bulk bulk(source);
  bulk.Attach(session);
  source.guest().Truncate(ByteCount(50 * kPageSize));
  bulk.SayFetch(AtFile(40), 60);  // a hole first
  EXPECT_FALSE(bulk.Read().has_value());
  EXPECT_EQ(bulk.Finish().error_code(), StatusCode::DATA_LOSS);
  EXPECT_FALSE(urgent.Ask(session, {AtFile(99)}).has_value());
  EXPECT_EQ(urgent.Finish().error_code(), StatusCode::DATA_LOSS);
  v1::OpenSnapshotRequest request;
  v1::OpenSnapshotResponse response;
  request.set_protocol_version(1);
  request.set_snapshot_name("s");
  const grpc::Status again = source.OpenSnapshot(request, &response);
  EXPECT_EQ(again.error_code(), StatusCode::DATA_LOSS);
  EXPECT_NE(again.error_message().find("must not be changed"),
            std::string::npos);
}

}  // namespace
}  // namespace postcopy
