#include "cmd/control/request_log.h"

#include <functional>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

// Within a process the same content is serialised alike: there are no maps.
size_t ContentOf(const google::protobuf::Message& request) {
  return std::hash<std::string>()(
      absl::StrCat(request.GetTypeName(), ":", request.SerializeAsString()));
}

}  // namespace

absl::StatusOr<RequestLog::Answer> RequestLog::Begin(
    const std::string& request_id, const google::protobuf::Message& request) {
  const size_t content = ContentOf(request);
  std::lock_guard lock(mutex_);
  Entry& entry =
      entries_.try_emplace(request_id, Entry{.content = content}).first->second;
  if (entry.content != content) {
    return absl::AlreadyExistsError(absl::StrCat(
        "request_id \"", request_id,
        "\" was used for a different request: choose one for each request"));
  }
  if (entry.done) return Answer::kDone;
  ++entry.under_way;
  return Answer::kNew;
}

void RequestLog::End(const std::string& request_id, bool done) {
  std::lock_guard lock(mutex_);
  const auto entry = entries_.find(request_id);
  // Forgotten already, because many others have been carried out since another
  // one of this id was.
  if (entry == entries_.end()) return;
  --entry->second.under_way;
  if (done && !entry->second.done) {
    entry->second.done = true;
    done_.push_back(request_id);
  }
  if (!entry->second.done && entry->second.under_way <= 0) {
    entries_.erase(entry);
  }
  if (done_.size() <= remembered_max_) return;
  entries_.erase(done_.front());
  done_.pop_front();
}

}  // namespace postcopy
