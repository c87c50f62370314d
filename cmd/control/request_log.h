// Which requests a daemon has carried out, so that one that comes again does
// nothing more.
#ifndef CMD_CONTROL_REQUEST_LOG_H_
#define CMD_CONTROL_REQUEST_LOG_H_

#include <cstddef>
#include <list>
#include <mutex>
#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "google/protobuf/message.h"

namespace postcopy {

// Requests remembered; the one carried out first is forgotten first.
inline constexpr size_t kRequestsRemembered = 1024;

// Thread-safe.
class RequestLog {
 public:
  enum class Answer {
    kNew,   // carry it out, then call End
    kDone,  // it has been carried out; do not call End
  };

  explicit RequestLog(size_t remembered_max = kRequestsRemembered)
      : remembered_max_(remembered_max) {}

  // A request has come. Two that are the same may be under way at once, and are
  // both kNew. ALREADY_EXISTS if a request of this id, done or under way, had
  // another content.
  absl::StatusOr<Answer> Begin(const std::string& request_id,
                               const google::protobuf::Message& request);
  // One that was kNew has been carried out, or has failed and is forgotten.
  void End(const std::string& request_id, bool done);

 private:
  struct Entry {
    size_t content = 0;  // its hash
    int under_way = 0;
    bool done = false;
  };

  const size_t remembered_max_;

  std::mutex mutex_;
  // Guarded by mutex_. Those under way are as many as the server has threads.
  std::unordered_map<std::string, Entry> entries_;
  std::list<std::string> done_;  // oldest first
};

}  // namespace postcopy

#endif  // CMD_CONTROL_REQUEST_LOG_H_
