#include "cmd/faultreplay/find_program.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

bool IsProgram(const std::string& path) {
  return ::access(path.c_str(), X_OK) == 0;
}

}  // namespace

absl::Status FindProgram(const std::string& own, const std::string& name,
                         std::string* path) {
  if (path->empty()) {
    const std::string above = own.substr(0, own.rfind('/')) + "/../";
    const std::string installed = absl::StrCat(above, "sbin/", name);
    *path = absl::StrCat(above, name, "/", name);
    if (!IsProgram(*path) && IsProgram(installed)) *path = installed;
  }
  if (IsProgram(*path)) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(
      "the program ", name, " is not at ", *path,
      ", nor where the package has it; build it, or name it with --", name));
}

}  // namespace postcopy
