// BulkLane over a gRPC stream.
#ifndef PAGESERVER_GRPC_BULK_LANE_H_
#define PAGESERVER_GRPC_BULK_LANE_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pageserver/bulk_lane.h"
#include "pageserver/source_migration.h"
#include "postcopy/v1/data_plane.grpc.pb.h"

namespace postcopy {

using BulkStream = grpc::ServerReaderWriter<v1::BulkResponse, v1::BulkRequest>;

// One Bulk call. Both arguments outlive it.
class GrpcBulkLane final : public BulkLane {
 public:
  GrpcBulkLane(grpc::ServerContext* context, BulkStream* stream)
      : context_(context), stream_(stream) {}

  // Reads the first message of the stream: the session it belongs to.
  absl::StatusOr<SessionKey> ReceiveAttach();

  absl::Status SendPages(PageBatch& batch) override;
  absl::Status SendRoundEnd(uint32_t round) override;
  absl::Status SendStale(PageBitmapView stale) override;
  absl::Status SendEarlyDiscard(uint32_t round) override;
  absl::Status SendSwitchOver(PageCount stale,
                              absl::string_view device_state) override;
  absl::Status SendCommit() override;
  absl::Status SendRecentlyDirtied(absl::Span<const PageRun> runs) override;
  absl::StatusOr<BulkMessage> Receive() override;
  void Abort() override { context_->TryCancel(); }

 private:
  absl::Status Write(const v1::BulkResponse& response);
  absl::Status SendStalePiece(PageBitmapView stale, size_t word, size_t words);

  grpc::ServerContext* const context_;
  BulkStream* const stream_;
  SessionKey session_;
  // Reused, so that sending pages allocates nothing once it is warm.
  v1::BulkResponse pages_;
  v1::BulkRequest request_;
};

}  // namespace postcopy

#endif  // PAGESERVER_GRPC_BULK_LANE_H_
