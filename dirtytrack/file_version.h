// Whether a file that nobody should change has been changed.
#ifndef DIRTYTRACK_FILE_VERSION_H_
#define DIRTYTRACK_FILE_VERSION_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/types.h"

namespace postcopy {

// What the inode says about the content of a file at one moment. Not when the
// inode itself changed: a file that is served may be renamed and unlinked.
struct FileVersion {
  ByteCount size;
  // When it was last written to, since the epoch. The kernel sets it before it
  // writes the bytes, so whoever has read some and then finds it unchanged has
  // read none of a later write; but for one that comes within the same tick of
  // the kernel's clock (4 ms at most) as the write before.
  int64_t written_s = 0;
  int64_t written_ns = 0;

  friend bool operator==(const FileVersion&, const FileVersion&) = default;
};

// Of the file behind `fd`. INTERNAL if it cannot be asked.
absl::StatusOr<FileVersion> VersionOf(int fd);

// DATA_LOSS if the file behind `fd` has another version than `then`, else as
// VersionOf. `what` names it in the message, such as "the file of snapshot x".
absl::Status CheckVersion(int fd, const FileVersion& then,
                          absl::string_view what);

}  // namespace postcopy

#endif  // DIRTYTRACK_FILE_VERSION_H_
