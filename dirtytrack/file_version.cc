#include "dirtytrack/file_version.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace postcopy {

absl::StatusOr<FileVersion> VersionOf(int fd) {
  struct stat info = {};
  if (::fstat(fd, &info) != 0) {
    return absl::InternalError(
        absl::StrCat("cannot look at it: ", ::strerrordesc_np(errno)));
  }
  return FileVersion{.size = ByteCount(static_cast<uint64_t>(info.st_size)),
                     .written_s = info.st_mtim.tv_sec,
                     .written_ns = info.st_mtim.tv_nsec};
}

absl::Status CheckVersion(int fd, const FileVersion& then,
                          absl::string_view what) {
  const absl::StatusOr<FileVersion> now = VersionOf(fd);
  if (!now.ok()) {
    return absl::Status(now.status().code(),
                        absl::StrCat(what, ": ", now.status().message()));
  }
  if (*now == then) return absl::OkStatus();
  const std::string changed =
      now->size < then.size
          ? absl::StrCat("truncated: it has ", now->size.value(),
                         " bytes, and had ", then.size.value())
          : "written to since it was opened";
  return absl::DataLossError(absl::StrCat(
      what, " has been ", changed,
      ": it must not be changed while VMs are restored from it; put a new one "
      "beside it and rename that"));
}

}  // namespace postcopy
