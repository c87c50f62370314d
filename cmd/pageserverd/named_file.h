// The value of --serve_snapshot.
#ifndef CMD_PAGESERVERD_NAMED_FILE_H_
#define CMD_PAGESERVERD_NAMED_FILE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace postcopy {

struct NamedFile {
  std::string name;
  std::string path;

  friend bool operator==(const NamedFile&, const NamedFile&) = default;
};

// Each of `texts` is NAME=FILE, where FILE may have more of =. INVALID_ARGUMENT
// names the one that is not, or whose file or name is empty.
absl::StatusOr<std::vector<NamedFile>> ParseNamedFiles(
    const std::vector<std::string>& texts);

}  // namespace postcopy

#endif  // CMD_PAGESERVERD_NAMED_FILE_H_
