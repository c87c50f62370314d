// A daemon's configuration file: one message as text.
#ifndef CMD_CONFIG_CONFIG_FILE_H_
#define CMD_CONFIG_CONFIG_FILE_H_

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace postcopy {

// The largest file that is read, in bytes. One with every field and its comment
// takes 5 KiB.
inline constexpr size_t kConfigBytesMax = 64 << 10;

// What was in a file, and where. Not thread-safe.
class ConfigFile {
 public:
  // Reads the regular file at `path` as text of a message of `type`; never
  // blocks. Errors: those of OpenRegularFile, others if it cannot be read;
  // RESOURCE_EXHAUSTED if it has more than kConfigBytesMax; those of Parse.
  static absl::StatusOr<std::unique_ptr<ConfigFile>> Read(
      const std::string& path, const google::protobuf::Message& type);

  // The same of `text`, whose errors name `path`. INVALID_ARGUMENT, one line
  // "path:line:column: why" for each mistake, both counted from 1: no text of
  // this message, a field that it does not have, a value that is none for the
  // field, a field twice.
  static absl::StatusOr<std::unique_ptr<ConfigFile>> Parse(
      const std::string& path, const std::string& text,
      const google::protobuf::Message& type);

  // An empty one, as if the file had nothing in it.
  static std::unique_ptr<ConfigFile> Empty(
      const google::protobuf::Message& type);

  const google::protobuf::Message& message() const { return *message_; }
  // Empty if there is no file.
  const std::string& path() const { return path_; }

  // "path:line:column" of a field that is in the file; of element `index` if it
  // is repeated, else -1.
  std::string Where(const google::protobuf::FieldDescriptor* field,
                    int index) const;

 private:
  ConfigFile(std::string path, const google::protobuf::Message& type)
      : path_(std::move(path)), message_(type.New()) {}

  const std::string path_;
  const std::unique_ptr<google::protobuf::Message> message_;
  google::protobuf::TextFormat::ParseInfoTree places_;
};

}  // namespace postcopy

#endif  // CMD_CONFIG_CONFIG_FILE_H_
