#include "dirtytrack/regular_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace postcopy {

absl::Status OpenFileError(absl::string_view what, absl::string_view path,
                           int error) {
  const std::string message = absl::StrCat("cannot open ", what, " ", path,
                                           ": ", ::strerrordesc_np(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(message);
    // Of a socket, or of a device without a driver.
    case ENXIO:
    case ENODEV:
    case ELOOP:
    case ENAMETOOLONG:
      return absl::InvalidArgumentError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<UniqueFd> OpenRegularFile(absl::string_view what,
                                         const std::string& path) {
  // O_NONBLOCK: opening a FIFO would wait for its writer.
  UniqueFd fd(
      ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  struct stat info = {};
  if (!fd.valid() || ::fstat(fd.get(), &info) != 0) {
    return OpenFileError(what, path, errno);
  }
  if (S_ISREG(info.st_mode)) return fd;
  return absl::InvalidArgumentError(
      absl::StrCat(what, " ", path,
                   " is not a regular file; give the path of the file "
                   "itself"));
}

}  // namespace postcopy
