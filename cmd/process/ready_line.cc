#include "cmd/process/ready_line.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"

namespace postcopy {

absl::StatusOr<std::string> StringInJson(const std::string& json,
                                         absl::string_view key) {
  google::protobuf::Struct object;
  if (!google::protobuf::util::JsonStringToMessage(json, &object).ok()) {
    return absl::DataLossError(absl::StrCat("not a JSON object: ", json));
  }
  const auto entry = object.fields().find(std::string(key));
  if (entry != object.fields().end() &&
      entry->second.kind_case() == google::protobuf::Value::kStringValue) {
    return entry->second.string_value();
  }
  return absl::DataLossError(absl::StrCat("no ", key, " in ", json));
}

}  // namespace postcopy
