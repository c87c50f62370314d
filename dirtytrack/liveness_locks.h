// Locks by which one process sees whether another still lives.
#ifndef DIRTYTRACK_LIVENESS_LOCKS_H_
#define DIRTYTRACK_LIVENESS_LOCKS_H_

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Locks on single bytes of a file, held until they are given back or the
// process ends, however it ends: the kernel gives them back then. Unlike a pid
// they mean the same in every namespace and are never reused.
//
// They are fcntl(2)'s locks of open file descriptions (F_OFD_SETLK), so two
// objects exclude each other, also within a process; a child of fork() keeps
// its parent's locks alive until it ends or calls exec().
//
// Thread-safe, but threads of one object share its locks.
class LivenessLocks {
 public:
  // Reopens the file behind `fd` by /proc/self/fd: a descriptor that was passed
  // on shares its description with the sender, and so its locks.
  // FAILED_PRECONDITION if that is impossible (no /proc, or no permission to
  // write).
  static absl::StatusOr<LivenessLocks> Open(int fd);

  // Locks the byte. False if another object holds it, or the kernel does not
  // say. So who gets the lock of somebody who said that he holds it knows that
  // he has ended, and that nobody takes his place before Unlock.
  bool TryLock(uint64_t offset) const;
  void Unlock(uint64_t offset) const;

 private:
  explicit LivenessLocks(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_LIVENESS_LOCKS_H_
