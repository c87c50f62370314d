// Writes JSON on one line. protobuf's own printer is no help for output that
// scripts compare: it writes 64-bit numbers as strings.
#ifndef CMD_POSTCOPYCTL_JSON_WRITER_H_
#define CMD_POSTCOPYCTL_JSON_WRITER_H_

#include <concepts>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace postcopy {

// One JSON object, built key by key in the order given. Keys are written as
// they are; values are escaped.
class JsonObject {
 public:
  JsonObject& Add(absl::string_view key, absl::string_view value);
  // Else a literal would become a bool.
  JsonObject& Add(absl::string_view key, const char* value);
  JsonObject& Add(absl::string_view key, bool value);
  // A template, so that no narrower number becomes a bool.
  JsonObject& Add(absl::string_view key, std::unsigned_integral auto value) {
    return AddRaw(key, absl::StrCat(value));
  }
  JsonObject& Add(absl::string_view key, const std::vector<uint64_t>& values);
  JsonObject& Add(absl::string_view key, const JsonObject& value);
  JsonObject& Add(absl::string_view key, const std::vector<JsonObject>& values);

  // "{...}", without a newline.
  std::string ToString() const;

 private:
  JsonObject& AddRaw(absl::string_view key, absl::string_view value);

  std::string members_;
};

// `text` as a JSON string, quotes included. Bytes from 0x80 on pass as they
// are: proto strings are UTF-8.
std::string JsonString(absl::string_view text);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_JSON_WRITER_H_
