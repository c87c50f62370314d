// Statuses between Abseil and gRPC, whose codes are the same numbers.
#ifndef CMD_DAEMON_GRPC_STATUS_H_
#define CMD_DAEMON_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace postcopy {

inline grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      std::string(status.message()));
}

}  // namespace postcopy

#endif  // CMD_DAEMON_GRPC_STATUS_H_
