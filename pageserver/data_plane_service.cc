#include "pageserver/data_plane_service.h"

#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/trace_id.h"
#include "pageserver/grpc_bulk_lane.h"
#include "pageserver/page_run_codec.h"
#include "pageserver/urgent_answers.h"

namespace postcopy {
namespace {

using GrpcUrgentStream =
    grpc::ServerReaderWriter<v1::UrgentResponse, v1::UrgentRequest>;

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      std::string(status.message()));
}

// What the peer's certificate calls it: all its alternative names, or the
// common name if it has none. Empty for a peer that showed none.
std::string PeerOf(const grpc::ServerContext& context) {
  std::string peer;
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  if (auth == nullptr || !auth->IsPeerAuthenticated()) return peer;
  for (const grpc::string_ref& name : auth->GetPeerIdentity()) {
    // Each with its length, so that no two lists of names look the same.
    absl::StrAppend(&peer, name.size(), ":",
                    absl::string_view(name.data(), name.size()));
  }
  return peer;
}

// The session's migration, if it is the peer's that asks.
absl::StatusOr<std::shared_ptr<SourceMigration>> FindSession(
    const SessionDirectory& directory, const grpc::ServerContext& context,
    SessionKey key) {
  absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      directory.FindSession(key.id);
  if (!migration.ok()) return migration;
  if (absl::Status s = (*migration)->CheckPeer(PeerOf(context)); !s.ok()) {
    return s;
  }
  return migration;
}

absl::Status CheckVersion(uint32_t version) {
  if (version >= kDataPlaneVersionMin && version <= kDataPlaneVersion) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "protocol version ", version, " is unknown to this source, which speaks ",
      kDataPlaneVersionMin, " to ", kDataPlaneVersion,
      ": upgrade the older of the two daemons"));
}

// An older destination has none.
absl::Status CheckTraceId(const std::string& trace_id) {
  if (trace_id.empty() || IsTraceId(trace_id)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "trace_id must be 32 digits of 0-9a-f, not all of them 0");
}

absl::Status DecodePages(const v1::UrgentRequest& request,
                         std::vector<PageIndex>& pages) {
  pages.clear();
  absl::Status whole = CheckNumbers(request, request.ram_offsets_bytes());
  if (!whole.ok()) return whole;
  for (uint64_t offset : request.ram_offsets_bytes()) {
    absl::StatusOr<PageIndex> page = DecodePage(offset);
    if (!page.ok()) return page.status();
    pages.push_back(*page);
  }
  return absl::OkStatus();
}

absl::StatusOr<SessionKey> ReceiveAttach(StreamDeadlines& deadlines,
                                         grpc::ServerContext& context,
                                         GrpcBulkLane& lane) {
  const StreamDeadlines::Pending pending(&deadlines,
                                         [&context] { context.TryCancel(); });
  return lane.ReceiveAttach();
}

// The one urgent call, whose answers may be written by several threads in turn.
class UrgentCall final : public UrgentStream {
 public:
  UrgentCall(grpc::ServerContext* context, GrpcUrgentStream* stream)
      : context_(*context), stream_(*stream) {}

  // Reads the first request; false if the stream has ended without one.
  bool ReadFirst(StreamDeadlines& deadlines) {
    const StreamDeadlines::Pending pending(&deadlines, [this] { Abort(); });
    return stream_.Read(&request_);
  }
  SessionKey key() const { return KeyOf(request_.session()); }
  void Abort() override { context_.TryCancel(); }

  // Answers this and all that follow. `check` says whether the session of a
  // request is still served.
  absl::Status Serve(UrgentAnswers::Stream to, SlowReaders* readers,
                     const std::function<absl::Status(SessionKey)>& check) {
    to.send = [this](PageBatch& batch) {
      EncodeRuns(batch, response_.mutable_runs());
      return stream_.Write(response_);
    };
    to.abort = [this] { Abort(); };
    const auto answers = UrgentAnswers::Create(std::move(to), readers);
    absl::Status status = AnswerAll(*answers, check);
    absl::Status late = answers->Close();
    return status.ok() ? late : status;
  }

 private:
  absl::Status AnswerAll(UrgentAnswers& answers,
                         const std::function<absl::Status(SessionKey)>& check) {
    std::vector<PageIndex> pages;
    pages.reserve(kBatchPagesMax.value());
    do {
      if (absl::Status s = DecodePages(request_, pages); !s.ok()) return s;
      // Nothing asked for, nothing answered: that only attaches.
      if (pages.empty()) continue;
      if (absl::Status s = check(key()); !s.ok()) return s;
      absl::Status status = answers.Answer(pages);
      if (absl::IsUnavailable(status)) break;  // the peer has gone
      if (!status.ok()) return status;
    } while (stream_.Read(&request_));
    return absl::OkStatus();
  }

  grpc::ServerContext& context_;
  GrpcUrgentStream& stream_;
  v1::UrgentRequest request_;
  // Reused; of who sends.
  v1::UrgentResponse response_;
};

// A place among the urgent streams of a session, which AttachUrgent took.
class UrgentPlace {
 public:
  UrgentPlace(SourceMigration* migration, UrgentStream* stream)
      : migration_(migration), stream_(stream) {}
  ~UrgentPlace() { migration_->DetachUrgent(stream_); }
  UrgentPlace(const UrgentPlace&) = delete;
  UrgentPlace& operator=(const UrgentPlace&) = delete;

 private:
  SourceMigration* const migration_;
  UrgentStream* const stream_;
};

absl::Status ServeUrgent(const std::shared_ptr<SourceMigration>& migration,
                         UrgentCall& call, SlowReaders* readers) {
  const SessionKey key = call.key();
  absl::StatusOr<std::shared_ptr<const GuestMemory>> attached =
      migration->AttachUrgent(key, &call);
  if (!attached.ok()) return attached.status();
  const UrgentPlace place(migration.get(), &call);
  // Weakly: a peer that keeps its stream open must not keep the RAM of a VM
  // that has ended.
  const std::weak_ptr<const GuestMemory> weak = *attached;
  const uint64_t disk = (*attached)->disk();
  attached->reset();
  UrgentAnswers::Stream to;
  to.read = [migration, weak, key](absl::Span<const PageIndex> pages,
                                   PageBatch& batch) {
    const std::shared_ptr<const GuestMemory> memory = weak.lock();
    if (memory == nullptr) return absl::AbortedError("the migration has ended");
    return migration->ReadUrgent(key, *memory, pages, batch);
  };
  to.disk = disk;
  if (migration->wishes().urgent_any_order) {
    to.may_wait = [weak](PageRun run) {
      const std::shared_ptr<const GuestMemory> memory = weak.lock();
      return memory != nullptr && memory->MayWait(run);
    };
  }
  return call.Serve(std::move(to), readers, [&](SessionKey of_request) {
    return migration->CheckEpoch(of_request);
  });
}

absl::Status ServeUrgent(const SnapshotSessions::Stream& session,
                         UrgentCall& call, SlowReaders* readers) {
  UrgentAnswers::Stream to;
  to.read = [snapshot = session.snapshot()](absl::Span<const PageIndex> pages,
                                            PageBatch& batch) {
    return snapshot->ReadUrgent(pages, batch);
  };
  to.disk = session.snapshot()->disk();
  if (session.any_order()) {
    to.may_wait = [snapshot = session.snapshot()](PageRun run) {
      return snapshot->MayWait(run);
    };
  }
  return call.Serve(std::move(to), readers,
                    [&](SessionKey key) { return session.Check(key); });
}

absl::Status ServeBulk(const SnapshotSessions::Stream& session, SessionKey key,
                       BulkLane& lane) {
  PageBatch batch;
  while (true) {
    absl::StatusOr<BulkMessage> message = lane.Receive();
    if (!message.ok()) return message.status();
    const auto* const fetch = std::get_if<FetchRange>(&*message);
    if (fetch == nullptr) {
      return absl::InvalidArgumentError(
          "of a snapshot nothing but FetchRange can be said: the destination "
          "does not follow the protocol");
    }
    if (absl::Status s = session.Check(key); !s.ok()) return s;
    absl::Status status = session.snapshot()->ReadRange(fetch->pages, batch);
    if (status.ok()) status = lane.SendPages(batch);
    if (!status.ok()) return status;
  }
}

}  // namespace

absl::Status DataPlaneService::Open(const grpc::ServerContext& context,
                                    const v1::OpenSessionRequest& request,
                                    v1::OpenSessionResponse* response) {
  if (absl::Status s = CheckVersion(request.protocol_version()); !s.ok()) {
    return s;
  }
  if (absl::Status s = CheckTraceId(request.trace_id()); !s.ok()) return s;
  absl::StatusOr<RamLayout> layout = DecodeLayout(request.layout());
  if (!layout.ok()) return layout.status();
  absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      directory_->Find(request.migration_id(), request.vm_name());
  if (!migration.ok()) return migration.status();
  absl::StatusOr<SessionKey> key =
      (*migration)
          ->OpenSession(request.epoch(), *layout,
                        {.recently_dirtied = request.recently_dirtied(),
                         .compressed_runs = request.zstd(),
                         .urgent_any_order = request.urgent_any_order()},
                        PeerOf(context));
  if (!key.ok()) return key.status();
  response->set_protocol_version(request.protocol_version());
  response->set_session_id(key->id);
  response->set_epoch(key->epoch);
  response->set_committed((*migration)->committed());
  return absl::OkStatus();
}

grpc::Status DataPlaneService::OpenSession(
    grpc::ServerContext* context, const v1::OpenSessionRequest* request,
    v1::OpenSessionResponse* response) {
  absl::Status status = Open(*context, *request, response);
  if (observer_.session) {
    observer_.session({.migration_id = request->migration_id(),
                       .vm_name = request->vm_name(),
                       .trace_id = request->trace_id(),
                       .epoch = request->epoch(),
                       .peer = context->peer(),
                       .status = status});
  }
  return ToGrpc(status);
}

absl::Status DataPlaneService::OpenFile(const grpc::ServerContext& context,
                                        const v1::OpenSnapshotRequest& request,
                                        v1::OpenSnapshotResponse* response) {
  if (absl::Status s = CheckVersion(request.protocol_version()); !s.ok()) {
    return s;
  }
  const absl::StatusOr<SnapshotSessions::Opened> opened =
      snapshots_->Open(request.snapshot_name(), KeyOf(request.lost()),
                       PeerOf(context), request.urgent_any_order());
  if (!opened.ok()) return opened.status();
  response->set_protocol_version(request.protocol_version());
  response->mutable_session()->set_session_id(opened->key.id);
  response->mutable_session()->set_epoch(opened->key.epoch);
  response->set_size_bytes(opened->snapshot->size().value());
  response->set_content_id(opened->snapshot->content_id());
  return absl::OkStatus();
}

grpc::Status DataPlaneService::OpenSnapshot(
    grpc::ServerContext* context, const v1::OpenSnapshotRequest* request,
    v1::OpenSnapshotResponse* response) {
  absl::Status status = OpenFile(*context, *request, response);
  if (observer_.session) {
    observer_.session({.snapshot_name = request->snapshot_name(),
                       .peer = context->peer(),
                       .status = status});
  }
  return ToGrpc(status);
}

grpc::Status DataPlaneService::Urgent(grpc::ServerContext* context,
                                      GrpcUrgentStream* stream) {
  return Ended(DataPlaneLane::kUrgent, ServeUrgentLane(context, *stream));
}

grpc::Status DataPlaneService::Bulk(grpc::ServerContext* context,
                                    BulkStream* stream) {
  return Ended(DataPlaneLane::kBulk, ServeBulkLane(context, *stream));
}

absl::Status DataPlaneService::ServeUrgentLane(grpc::ServerContext* context,
                                               GrpcUrgentStream& stream) {
  UrgentCall call(context, &stream);
  if (!call.ReadFirst(deadlines_)) return absl::OkStatus();
  const SessionKey key = call.key();
  const absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      FindSession(*directory_, *context, key);
  if (migration.ok()) return ServeUrgent(*migration, call, &readers_);
  if (!absl::IsNotFound(migration.status())) return migration.status();
  const absl::StatusOr<SnapshotSessions::Stream> session = snapshots_->Attach(
      key, SnapshotSessions::Lane::kUrgent, [&call] { call.Abort(); },
      PeerOf(*context));
  if (!session.ok()) return session.status();
  return ServeUrgent(*session, call, &readers_);
}

absl::Status DataPlaneService::ServeBulkLane(grpc::ServerContext* context,
                                             BulkStream& stream) {
  GrpcBulkLane lane(context, &stream);
  const absl::StatusOr<SessionKey> key =
      ReceiveAttach(deadlines_, *context, lane);
  if (!key.ok()) return key.status();
  const absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      FindSession(*directory_, *context, *key);
  if (migration.ok()) return (*migration)->ServeBulk(*key, &lane);
  if (!absl::IsNotFound(migration.status())) return migration.status();
  const absl::StatusOr<SnapshotSessions::Stream> session = snapshots_->Attach(
      *key, SnapshotSessions::Lane::kBulk, [&lane] { lane.Abort(); },
      PeerOf(*context));
  if (!session.ok()) return session.status();
  return ServeBulk(*session, *key, lane);
}

grpc::Status DataPlaneService::Ended(DataPlaneLane lane,
                                     const absl::Status& status) const {
  if (observer_.stream_ended) observer_.stream_ended(lane, status);
  return ToGrpc(status);
}

grpc::Status DataPlaneService::CompleteSession(
    grpc::ServerContext* context, const v1::CompleteSessionRequest* request,
    v1::CompleteSessionResponse* /*response*/) {
  const SessionKey key = KeyOf(request->session());
  absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      FindSession(*directory_, *context, key);
  if (!migration.ok()) return ToGrpc(migration.status());
  return ToGrpc((*migration)->Complete(key));
}

}  // namespace postcopy
