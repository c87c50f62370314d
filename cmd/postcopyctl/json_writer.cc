#include "cmd/postcopyctl/json_writer.h"

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace postcopy {

JsonObject& JsonObject::Add(absl::string_view key, absl::string_view value) {
  return AddRaw(key, JsonString(value));
}

JsonObject& JsonObject::Add(absl::string_view key, const char* value) {
  return AddRaw(key, JsonString(value));
}

JsonObject& JsonObject::Add(absl::string_view key, bool value) {
  return AddRaw(key, value ? "true" : "false");
}

JsonObject& JsonObject::Add(absl::string_view key,
                            const std::vector<uint64_t>& values) {
  return AddRaw(key, absl::StrCat("[", absl::StrJoin(values, ","), "]"));
}

JsonObject& JsonObject::Add(absl::string_view key, const JsonObject& value) {
  return AddRaw(key, value.ToString());
}

JsonObject& JsonObject::Add(absl::string_view key,
                            const std::vector<JsonObject>& values) {
  const auto append = [](std::string* out, const JsonObject& value) {
    out->append(value.ToString());
  };
  return AddRaw(key,
                absl::StrCat("[", absl::StrJoin(values, ",", append), "]"));
}

JsonObject& JsonObject::AddRaw(absl::string_view key, absl::string_view value) {
  absl::StrAppend(&members_, members_.empty() ? "" : ",", "\"", key,
                  "\":", value);
  return *this;
}

std::string JsonObject::ToString() const {
  return absl::StrCat("{", members_, "}");
}

std::string JsonString(absl::string_view text) {
  std::string result = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&result, "\\", std::string(1, c));
    } else if (c < 0x20) {
      absl::StrAppendFormat(&result, "\\u%04x", c);
    } else {
      result.push_back(static_cast<char>(c));
    }
  }
  result.push_back('"');
  return result;
}

}  // namespace postcopy
