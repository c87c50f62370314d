#include "cmd/pageserverd/named_file.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {

absl::StatusOr<std::vector<NamedFile>> ParseNamedFiles(
    const std::vector<std::string>& texts) {
  std::vector<NamedFile> files;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0 ||
        equals + 1 == text.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", text, "\" is not NAME=FILE"));
    }
    files.push_back({text.substr(0, equals), text.substr(equals + 1)});
  }
  return files;
}

}  // namespace postcopy
