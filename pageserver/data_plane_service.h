// The data plane's gRPC service.
#ifndef PAGESERVER_DATA_PLANE_SERVICE_H_
#define PAGESERVER_DATA_PLANE_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <chrono>

#include "pageserver/session_directory.h"
#include "pageserver/slow_readers.h"
#include "pageserver/snapshot_sessions.h"
#include "pageserver/stream_deadlines.h"
#include "postcopy/v1/data_plane.grpc.pb.h"

namespace postcopy {

// Versions of the data plane this source speaks, both inclusive.
inline constexpr uint32_t kDataPlaneVersionMin = 1;
inline constexpr uint32_t kDataPlaneVersion = 1;

// The largest request a source takes; what it has to say is larger.
inline constexpr int kDataPlaneRequestBytesMax = 64 << 10;

// How long a stream may take to say which session it is for.
inline constexpr std::chrono::seconds kAttachTimeout(10);

// Answers the data plane for the migrations of a directory and for VMs that are
// restored from snapshots. Synchronous: each
// stream has a thread of its own, so the urgent lane waits for nothing but the
// page it reads (docs/adr/0003), and not even for that where the destination
// takes pages in any order (docs/adr/0021).
class DataPlaneService final : public v1::DataPlaneService::Service {
 public:
  // Both outlive this.
  DataPlaneService(SessionDirectory* directory, SnapshotSessions* snapshots,
                   std::chrono::nanoseconds attach_timeout = kAttachTimeout)
      : directory_(directory),
        snapshots_(snapshots),
        deadlines_(attach_timeout) {}

  grpc::Status OpenSession(grpc::ServerContext* context,
                           const v1::OpenSessionRequest* request,
                           v1::OpenSessionResponse* response) override;
  grpc::Status OpenSnapshot(grpc::ServerContext* context,
                            const v1::OpenSnapshotRequest* request,
                            v1::OpenSnapshotResponse* response) override;
  grpc::Status Urgent(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::UrgentResponse, v1::UrgentRequest>* stream)
      override;
  grpc::Status Bulk(grpc::ServerContext* context,
                    grpc::ServerReaderWriter<v1::BulkResponse, v1::BulkRequest>*
                        stream) override;
  grpc::Status CompleteSession(grpc::ServerContext* context,
                               const v1::CompleteSessionRequest* request,
                               v1::CompleteSessionResponse* response) override;

 private:
  SessionDirectory* const directory_;
  SnapshotSessions* const snapshots_;
  StreamDeadlines deadlines_;
  SlowReaders readers_;
};

}  // namespace postcopy

#endif  // PAGESERVER_DATA_PLANE_SERVICE_H_
