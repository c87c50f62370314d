// The data plane's gRPC service.
#ifndef PAGESERVER_DATA_PLANE_SERVICE_H_
#define PAGESERVER_DATA_PLANE_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "absl/status/status.h"
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

// What a destination asked for at OpenSession or OpenSnapshot, and what came of
// it.
struct SessionAttempt {
  // As the peer said them: any bytes, unless `status` is OK.
  std::string migration_id;
  std::string vm_name;
  std::string trace_id;
  std::string snapshot_name;  // of OpenSnapshot alone
  uint64_t epoch = 0;
  // How gRPC names the peer, such as "ipv4:10.0.0.1:40312".
  std::string peer;
  absl::Status status;
};

enum class DataPlaneLane { kUrgent, kBulk };

// Who is told what destinations do, by threads of calls: must not block. Each
// may be empty.
struct DataPlaneObserver {
  std::function<void(const SessionAttempt&)> session;
  // A stream has ended, with OK or what its peer was told.
  std::function<void(DataPlaneLane, const absl::Status&)> stream_ended;
};

// Answers the data plane for the migrations of a directory and for VMs that are
// restored from snapshots. Synchronous: each
// stream has a thread of its own, so the urgent lane waits for nothing but the
// page it reads (docs/adr/0003), and not even for that where the destination
// takes pages in any order (docs/adr/0021).
class DataPlaneService final : public v1::DataPlaneService::Service {
 public:
  // Both outlive this.
  DataPlaneService(SessionDirectory* directory, SnapshotSessions* snapshots,
                   DataPlaneObserver observer = {},
                   std::chrono::nanoseconds attach_timeout = kAttachTimeout)
      : directory_(directory),
        snapshots_(snapshots),
        observer_(std::move(observer)),
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
  absl::Status Open(const grpc::ServerContext& context,
                    const v1::OpenSessionRequest& request,
                    v1::OpenSessionResponse* response);
  absl::Status OpenFile(const grpc::ServerContext& context,
                        const v1::OpenSnapshotRequest& request,
                        v1::OpenSnapshotResponse* response);
  absl::Status ServeUrgentLane(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::UrgentResponse, v1::UrgentRequest>& stream);
  absl::Status ServeBulkLane(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::BulkResponse, v1::BulkRequest>& stream);
  grpc::Status Ended(DataPlaneLane lane, const absl::Status& status) const;

  SessionDirectory* const directory_;
  SnapshotSessions* const snapshots_;
  const DataPlaneObserver observer_;
  StreamDeadlines deadlines_;
  SlowReaders readers_;
};

}  // namespace postcopy

#endif  // PAGESERVER_DATA_PLANE_SERVICE_H_
