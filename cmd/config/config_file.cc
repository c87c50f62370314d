#include "cmd/config/config_file.h"

#include <google/protobuf/io/tokenizer.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dirtytrack/regular_file.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

using google::protobuf::TextFormat;

std::string Place(const std::string& path, int line, int column) {
  // The parser counts from 0, editors from 1; -1 is the text as a whole.
  return line < 0 ? path : absl::StrCat(path, ":", line + 1, ":", column + 1);
}

// Collects what the parser finds.
class Mistakes final : public google::protobuf::io::ErrorCollector {
 public:
  explicit Mistakes(const std::string* path) : path_(*path) {}

  void AddError(int line, int column, const std::string& message) override {
    absl::StrAppend(&text_, text_.empty() ? "" : "\n",
                    Place(path_, line, column), ": ", message);
  }

  const std::string& text() const { return text_; }

 private:
  const std::string& path_;
  std::string text_;
};

// At most one byte more than may be there.
absl::StatusOr<std::string> ReadText(const std::string& path) {
  absl::StatusOr<UniqueFd> fd = OpenRegularFile("the configuration file", path);
  if (!fd.ok()) return fd.status();
  std::string text(kConfigBytesMax + 1, '\0');
  size_t used = 0;
  while (used < text.size()) {
    const ssize_t got = ::read(fd->get(), &text[used], text.size() - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, path);
    if (got == 0) break;
    used += static_cast<size_t>(got);
  }
  text.resize(used);
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConfigFile>> ConfigFile::Read(
    const std::string& path, const google::protobuf::Message& type) {
  absl::StatusOr<std::string> text = ReadText(path);
  if (!text.ok()) return text.status();
  if (text->size() > kConfigBytesMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": a configuration file has at most ",
                     kConfigBytesMax, " bytes: is this one?"));
  }
  return Parse(path, *text, type);
}

absl::StatusOr<std::unique_ptr<ConfigFile>> ConfigFile::Parse(
    const std::string& path, const std::string& text,
    const google::protobuf::Message& type) {
  std::unique_ptr<ConfigFile> file(new ConfigFile(path, type));
  Mistakes mistakes(&file->path_);
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&mistakes);
  parser.WriteLocationsTo(&file->places_);
  if (parser.ParseFromString(text, file->message_.get())) return file;
  return absl::InvalidArgumentError(mistakes.text());
}

std::unique_ptr<ConfigFile> ConfigFile::Empty(
    const google::protobuf::Message& type) {
  return std::unique_ptr<ConfigFile>(new ConfigFile("", type));
}

std::string ConfigFile::Where(const google::protobuf::FieldDescriptor* field,
                              int index) const {
  const TextFormat::ParseLocation place = places_.GetLocation(field, index);
  return Place(path_, place.line, place.column);
}

}  // namespace postcopy
