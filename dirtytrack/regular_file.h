// Opening files that an operator names.
#ifndef DIRTYTRACK_REGULAR_FILE_H_
#define DIRTYTRACK_REGULAR_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Opens the file at `path` read-only, and O_NONBLOCK: does not block on a FIFO
// or a device. `what` names it in messages, such as "the snapshot file".
// INVALID_ARGUMENT if it is no regular file, else as OpenFileError.
absl::StatusOr<UniqueFd> OpenRegularFile(absl::string_view what,
                                         const std::string& path);

// What `error`, of open(2), means: NOT_FOUND; PERMISSION_DENIED;
// INVALID_ARGUMENT for a path that leads to no file; RESOURCE_EXHAUSTED for
// descriptors and memory; else INTERNAL.
absl::Status OpenFileError(absl::string_view what, absl::string_view path,
                           int error);

}  // namespace postcopy

#endif  // DIRTYTRACK_REGULAR_FILE_H_
