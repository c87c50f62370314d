#include "pageserver/data_plane_service.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dirtytrack/ram_layout.h"
#include "pageserver/grpc_bulk_lane.h"
#include "pageserver/page_run_codec.h"

namespace postcopy {
namespace {

using UrgentStream =
    grpc::ServerReaderWriter<v1::UrgentResponse, v1::UrgentRequest>;

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      std::string(status.message()));
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

absl::Status DecodePages(const v1::UrgentRequest& request,
                         std::vector<PageIndex>& pages) {
  pages.clear();
  for (uint64_t offset : request.ram_offsets_bytes()) {
    absl::StatusOr<PageIndex> page = DecodePage(offset);
    if (!page.ok()) return page.status();
    pages.push_back(*page);
  }
  return absl::OkStatus();
}

// Answers the requests of one urgent stream. What it reuses is allocated by
// the first of them.
class UrgentServer {
 public:
  // Holds the memory weakly: a peer that keeps its stream open must not keep
  // the RAM of a VM that has ended.
  UrgentServer(std::shared_ptr<SourceMigration> migration,
               const std::shared_ptr<const GuestMemory>& memory)
      : migration_(std::move(migration)), memory_(memory) {
    pages_.reserve(kBatchPagesMax.value());
  }

  absl::Status Answer(const v1::UrgentRequest& request,
                      v1::UrgentResponse& response) {
    if (absl::Status s = DecodePages(request, pages_); !s.ok()) return s;
    const std::shared_ptr<const GuestMemory> memory = memory_.lock();
    if (memory == nullptr) return absl::AbortedError("the migration has ended");
    absl::Status status = migration_->ReadUrgent(KeyOf(request.session()),
                                                 *memory, pages_, batch_);
    if (!status.ok()) return status;
    EncodeRuns(batch_, response.mutable_runs());
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<SourceMigration> migration_;
  const std::weak_ptr<const GuestMemory> memory_;
  std::vector<PageIndex> pages_;
  PageBatch batch_;
};

absl::Status ServeUrgent(SessionDirectory& directory, UrgentStream& stream) {
  v1::UrgentRequest request;
  if (!stream.Read(&request)) return absl::OkStatus();
  const SessionKey key = KeyOf(request.session());
  absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      directory.FindSession(key.id);
  if (!migration.ok()) return migration.status();
  absl::StatusOr<std::shared_ptr<const GuestMemory>> memory =
      (*migration)->AttachUrgent(key);
  if (!memory.ok()) return memory.status();

  UrgentServer server(*std::move(migration), *memory);
  memory->reset();
  v1::UrgentResponse response;
  do {
    // Nothing asked for, nothing answered: that only attaches.
    if (request.ram_offsets_bytes().empty()) continue;
    if (absl::Status s = server.Answer(request, response); !s.ok()) return s;
    if (!stream.Write(response)) break;
  } while (stream.Read(&request));
  return absl::OkStatus();
}

}  // namespace

grpc::Status DataPlaneService::OpenSession(
    grpc::ServerContext* /*context*/, const v1::OpenSessionRequest* request,
    v1::OpenSessionResponse* response) {
  if (absl::Status s = CheckVersion(request->protocol_version()); !s.ok()) {
    return ToGrpc(s);
  }
  absl::StatusOr<RamLayout> layout = DecodeLayout(request->layout());
  if (!layout.ok()) return ToGrpc(layout.status());
  absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      directory_->Find(request->migration_id(), request->vm_name());
  if (!migration.ok()) return ToGrpc(migration.status());
  absl::StatusOr<SessionKey> key =
      (*migration)
          ->OpenSession(request->epoch(), *layout,
                        {.recently_dirtied = request->recently_dirtied(),
                         .compressed_runs = request->zstd()});
  if (!key.ok()) return ToGrpc(key.status());
  response->set_protocol_version(request->protocol_version());
  response->set_session_id(key->id);
  response->set_epoch(key->epoch);
  response->set_committed((*migration)->committed());
  return grpc::Status::OK;
}

grpc::Status DataPlaneService::Urgent(grpc::ServerContext* /*context*/,
                                      UrgentStream* stream) {
  return ToGrpc(ServeUrgent(*directory_, *stream));
}

grpc::Status DataPlaneService::Bulk(grpc::ServerContext* context,
                                    BulkStream* stream) {
  GrpcBulkLane lane(context, stream);
  absl::StatusOr<SessionKey> key = lane.ReceiveAttach();
  if (!key.ok()) return ToGrpc(key.status());
  absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      directory_->FindSession(key->id);
  if (!migration.ok()) return ToGrpc(migration.status());
  return ToGrpc((*migration)->ServeBulk(*key, &lane));
}

grpc::Status DataPlaneService::CompleteSession(
    grpc::ServerContext* /*context*/, const v1::CompleteSessionRequest* request,
    v1::CompleteSessionResponse* /*response*/) {
  const SessionKey key = KeyOf(request->session());
  absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      directory_->FindSession(key.id);
  if (!migration.ok()) return ToGrpc(migration.status());
  return ToGrpc((*migration)->Complete(key));
}

}  // namespace postcopy
