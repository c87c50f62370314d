// The destination's side of the data plane: sessions over gRPC.
#ifndef UFFD_DATA_PLANE_CLIENT_H_
#define UFFD_DATA_PLANE_CLIENT_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "dirtytrack/ram_layout.h"
#include "uffd/remote_snapshot.h"
#include "uffd/source_connection.h"

namespace grpc {
class ChannelCredentials;
}  // namespace grpc

namespace postcopy {

// The version of the data plane this destination speaks.
inline constexpr uint32_t kDataPlaneClientVersion = 1;

// The largest response a destination takes: a full batch of pages and its
// framing.
inline constexpr int kDataPlaneResponseBytesMax = 2 << 20;

// How long opening a session may take, with both its connections.
inline constexpr std::chrono::seconds kDialTimeout(10);

// What a connection to the source is made with. Asked for each connection, so
// that one made later has what is valid then; any thread.
using SourceCredentials =
    std::function<absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>>()>;

// Opens the sessions of one migration with the source at `address`
// (host:port). Each session has two connections of its own, one per lane.
// `trace_id` is for the source's log. Open waits no longer than `timeout`:
// DEADLINE_EXCEEDED.
std::unique_ptr<SourceDialer> NewGrpcSourceDialer(
    std::string address, SourceCredentials credentials,
    std::string migration_id, std::string vm_name, const RamLayout& layout,
    std::string trace_id = "", std::chrono::nanoseconds timeout = kDialTimeout);

// Opens the sessions of one VM that is restored from the snapshot `name` of the
// source at `address`, each within `timeout`. UNIMPLEMENTED says that the
// source is older than this daemon and must be upgraded.
std::unique_ptr<SnapshotDialer> NewGrpcSnapshotDialer(
    std::string address, SourceCredentials credentials, std::string name,
    std::chrono::nanoseconds timeout = kDialTimeout);

}  // namespace postcopy

#endif  // UFFD_DATA_PLANE_CLIENT_H_
