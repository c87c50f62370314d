#include "uffd/snapshot_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/check.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/regular_file.h"

namespace postcopy {
namespace {

constexpr absl::string_view kWhat = "the snapshot file";

}  // namespace

absl::StatusOr<SnapshotFile> SnapshotFile::Open(const std::string& path,
                                                SnapshotAccess access) {
  const absl::StatusOr<UniqueFd> first = OpenRegularFile(kWhat, path);
  if (!first.ok()) return first.status();
  SnapshotFile file(path, access);
  // Without O_NONBLOCK: io_uring would take it as "rather fail than wait".
  absl::Status status = file.OpenBehind(first->get());
  if (!status.ok()) return status;
  return file;
}

absl::StatusOr<SnapshotFile> SnapshotFile::Reopen() const {
  SnapshotFile file(path_, access_);
  absl::Status status = file.OpenBehind(fd());
  if (!status.ok()) return status;
  file.version_ = version_;
  return file;
}

absl::Status SnapshotFile::OpenBehind(int fd) {
  const std::string link = absl::StrCat("/proc/self/fd/", fd);
  buffered_.Reset(::open(link.c_str(), O_RDONLY | O_CLOEXEC));
  if (!buffered_.valid()) {
    if (errno != ENOENT && errno != ENOTDIR)
      return OpenFileError(kWhat, path_, errno);
    return absl::FailedPreconditionError(
        absl::StrCat("cannot reopen the snapshot file ", path_, " by ", link,
                     ": mount /proc"));
  }
  const absl::StatusOr<FileVersion> version = VersionOf(buffered_.get());
  if (!version.ok()) return version.status();
  version_ = *version;
  if (access_ == SnapshotAccess::kBuffered) return absl::OkStatus();
  direct_.Reset(::open(link.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  // EINVAL: the file system has no direct access (open(2)).
  if (direct_.valid() || errno == EINVAL) return absl::OkStatus();
  return OpenFileError(kWhat, path_, errno);
}

absl::StatusOr<bool> SnapshotFile::IsHole(uint64_t offset, ByteCount length) {
  POSTCOPY_CHECK(length <= size() && offset <= size().value() - length.value());
  const uint64_t end = offset + length.value();
  if (offset < hole_begin_ || offset >= hole_end_) LookForHole(offset);
  if (offset < hole_begin_ || end > hole_end_) return false;
  // Looked at each time, after the hole: past the end of a truncated file all
  // is a hole too.
  const absl::StatusOr<ByteCount> now = FileSize(fd());
  if (!now.ok()) return now.status();
  if (now->value() >= end) return true;
  return absl::OutOfRangeError(
      absl::StrCat("it had ", ToString(size()), " and now has only ",
                   ToString(*now), ": somebody has truncated it"));
}

void SnapshotFile::LookForHole(uint64_t offset) {
  const off_t data = ::lseek(fd(), static_cast<off_t>(offset), SEEK_DATA);
  if (data >= 0) {
    hole_begin_ = offset;
    hole_end_ = static_cast<uint64_t>(data);  // empty: here is data
  } else if (errno == ENXIO) {
    hole_begin_ = offset;
    hole_end_ = size().value();  // no data from here to the end
  }
  // Any other error: it does not know, so all must be read.
}

}  // namespace postcopy
