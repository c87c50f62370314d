// QEMU's machine protocol (docs/interop/qmp-spec.txt of QEMU): one JSON object
// on each line, answers to commands and events in between.
#ifndef CMD_FAULTREPLAY_QEMU_QMP_CLIENT_H_
#define CMD_FAULTREPLAY_QEMU_QMP_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cmd/postcopyctl/json_writer.h"
#include "dirtytrack/unique_fd.h"
#include "google/protobuf/struct.pb.h"

namespace postcopy {

// A line that QEMU sends, in bytes, and events nobody has asked for yet.
inline constexpr size_t kQmpLineBytesMax = 1 << 20;
inline constexpr size_t kQmpEventsMax = 1024;

struct QmpEvent {
  // "MIGRATION".
  std::string name;
  // When QEMU says that it happened.
  absl::Time time;
  google::protobuf::Struct data;
};

// `object`[`key`], or what an empty Value has if there is none.
std::string QmpString(const google::protobuf::Struct& object,
                      const std::string& key);
double QmpNumber(const google::protobuf::Struct& object,
                 const std::string& key);
google::protobuf::Struct QmpObject(const google::protobuf::Struct& object,
                                   const std::string& key);

// One connection to a monitor. Not thread-safe. Errors of all calls:
// UNAVAILABLE if the connection has ended, INTERNAL for what is no QMP,
// RESOURCE_EXHAUSTED beyond the limits above; after these only the destructor
// may be called.
class QmpClient {
 public:
  // A connected stream socket. Nothing is read yet.
  explicit QmpClient(UniqueFd socket) : socket_(std::move(socket)) {}

  // To be called first: reads the greeting and asks for no capabilities.
  absl::Status Negotiate(absl::Duration timeout);

  // What the command returns. FAILED_PRECONDITION with QEMU's words if it
  // refuses, DEADLINE_EXCEEDED if there is no answer in time (then as above).
  absl::StatusOr<google::protobuf::Value> Execute(absl::string_view command,
                                                  const JsonObject& arguments,
                                                  absl::Duration timeout);

  // The next event in order; DEADLINE_EXCEEDED if none comes in time, which
  // harms nothing.
  absl::StatusOr<QmpEvent> NextEvent(absl::Duration timeout);

 private:
  absl::StatusOr<google::protobuf::Struct> ReadObject(absl::Time deadline);
  absl::Status Receive(absl::Time deadline);
  absl::Status KeepEvent(const google::protobuf::Struct& message);
  absl::Status Send(const std::string& line);

  UniqueFd socket_;
  std::string unread_;
  std::deque<QmpEvent> events_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_QEMU_QMP_CLIENT_H_
