// A file with a VM's memory, opened to be read.
#ifndef UFFD_SNAPSHOT_FILE_H_
#define UFFD_SNAPSHOT_FILE_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/file_version.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// How a file's bytes come: through the page cache, or past it into the
// reader's memory (O_DIRECT).
enum class SnapshotAccess { kBuffered, kDirect };

// A regular file, open read-only, that nobody should change. Its descriptors
// are its own (so is its file offset, which IsHole moves), hence not
// thread-safe: every thread has one, made by Reopen().
class SnapshotFile {
 public:
  // kDirect falls back to kBuffered where the file system has no O_DIRECT. Does
  // not block on a FIFO or a device. Errors: NOT_FOUND; PERMISSION_DENIED;
  // INVALID_ARGUMENT if it is no regular file; RESOURCE_EXHAUSTED for
  // descriptors; FAILED_PRECONDITION without /proc; else INTERNAL.
  static absl::StatusOr<SnapshotFile> Open(const std::string& path,
                                           SnapshotAccess access);

  // The same file with descriptors of its own, whatever the path leads to by
  // now. Errors as of Open.
  absl::StatusOr<SnapshotFile> Reopen() const;

  const std::string& path() const { return path_; }
  // As it was at Open.
  ByteCount size() const { return version_.size; }
  // Where all can be read, at any offset.
  int fd() const { return buffered_.get(); }
  // Where reads past the page cache go: of whole pages, at multiples of
  // kPageSize, into memory aligned to it. Below 0: there is none. A read may
  // still fail with EINVAL, if the disk wants more alignment.
  int direct_fd() const { return direct_.get(); }

  // DATA_LOSS if it has been written to or truncated since Open. What was read
  // before is then not to be used.
  absl::Status CheckUnchanged() const {
    return CheckVersion(fd(), version_, path_);
  }

  // True if the bytes [offset, offset + length) are a hole, hence zeros. False
  // also where the file system does not know. OUT_OF_RANGE if the file now
  // ends before the hole does: then it was truncated, and what would be zeros
  // is lost. REQUIRES: offset + length <= size().
  absl::StatusOr<bool> IsHole(uint64_t offset, ByteCount length);

 private:
  SnapshotFile(std::string path, SnapshotAccess access)
      : path_(std::move(path)), access_(access) {}

  // Opens both descriptors for the file behind `fd`.
  absl::Status OpenBehind(int fd);
  // Sets the known hole if there is one at `offset`.
  void LookForHole(uint64_t offset);

  std::string path_;
  SnapshotAccess access_;
  FileVersion version_;
  UniqueFd buffered_;
  UniqueFd direct_;
  // The hole seen last, [begin, end).
  uint64_t hole_begin_ = 0;
  uint64_t hole_end_ = 0;
};

}  // namespace postcopy

#endif  // UFFD_SNAPSHOT_FILE_H_
