// A file descriptor and the duty to close it.
#ifndef DIRTYTRACK_UNIQUE_FD_H_
#define DIRTYTRACK_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace postcopy {

// Owns at most one descriptor. Not thread-safe, as an int is not.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    Reset(other.Release());
    return *this;
  }
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // Gives the descriptor up without closing it.
  int Release() { return std::exchange(fd_, -1); }
  // Closes what it holds, then holds `fd`.
  void Reset(int fd = -1) {
    // EINTR after close() on Linux means closed: retrying could close a
    // descriptor that another thread has just been given.
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_UNIQUE_FD_H_
