#include "dirtytrack/liveness_locks.h"

#include <fcntl.h>
#include <string.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

struct flock OneByte(short type, uint64_t offset) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(offset);
  lock.l_len = 1;
  return lock;
}

}  // namespace

absl::StatusOr<LivenessLocks> LivenessLocks::Open(int fd) {
  UniqueFd own(
      ::open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_RDWR | O_CLOEXEC));
  if (own.valid()) return LivenessLocks(std::move(own));
  return absl::FailedPreconditionError(absl::StrCat(
      "cannot reopen a descriptor for locking: ", ::strerrordesc_np(errno),
      "; mount /proc"));
}

bool LivenessLocks::TryLock(uint64_t offset) const {
  struct flock lock = OneByte(F_WRLCK, offset);
  return ::fcntl(fd_.get(), F_OFD_SETLK, &lock) == 0;
}

void LivenessLocks::Unlock(uint64_t offset) const {
  struct flock lock = OneByte(F_UNLCK, offset);
  ::fcntl(fd_.get(), F_OFD_SETLK, &lock);
}

}  // namespace postcopy
