#include "dirtytrack/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace postcopy {
namespace {

constexpr size_t kMaxMemfdNameBytes = 249;  // memfd_create(2)

// What a failed system call means to callers of this file.
absl::Status SystemError(absl::string_view call, int error) {
  const std::string message =
      absl::StrCat(call, " failed: ", ::strerrordesc_np(error));
  switch (error) {
    case ENOMEM:
    case EMFILE:
    case ENFILE:
    case EAGAIN:
      return absl::ResourceExhaustedError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    case EBADF:
      return absl::InvalidArgumentError(message);
    default:
      return absl::InternalError(message);
  }
}

std::string SealNames(int seals) {
  struct Seal {
    int bit;
    const char* name;
  };
  constexpr Seal kSeals[] = {{F_SEAL_SHRINK, "F_SEAL_SHRINK"},
                             {F_SEAL_GROW, "F_SEAL_GROW"},
                             {F_SEAL_WRITE, "F_SEAL_WRITE"},
                             {F_SEAL_FUTURE_WRITE, "F_SEAL_FUTURE_WRITE"},
                             {F_SEAL_SEAL, "F_SEAL_SEAL"}};
  std::vector<std::string> names;
  for (const Seal& seal : kSeals) {
    if (seals & seal.bit) names.push_back(seal.name);
  }
  return absl::StrJoin(names, "|");
}

}  // namespace

absl::StatusOr<UniqueFd> CreateMemfd(absl::string_view name, ByteCount size,
                                     int seals) {
  if (name.size() > kMaxMemfdNameBytes ||
      name.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("a memfd's name has at most ", kMaxMemfdNameBytes,
                     " bytes and no NUL"));
  }
  if (size.value() > INT64_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("no memfd can have ", ToString(size)));
  }
  UniqueFd fd(::memfd_create(std::string(name).c_str(),
                             MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return SystemError("memfd_create", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(size.value())) != 0) {
    return SystemError("ftruncate of a memfd", errno);
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, seals) != 0) {
    return SystemError("fcntl(F_ADD_SEALS)", errno);
  }
  return fd;
}

absl::StatusOr<UniqueFd> Duplicate(int fd) {
  UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!own.valid()) return SystemError("fcntl(F_DUPFD_CLOEXEC)", errno);
  return own;
}

absl::StatusOr<ByteCount> FileSize(int fd) {
  struct stat info;
  if (::fstat(fd, &info) != 0) return SystemError("fstat", errno);
  return ByteCount(static_cast<uint64_t>(info.st_size));
}

absl::Status RequireSeals(int fd, int seals, absl::string_view what) {
  const int present = ::fcntl(fd, F_GET_SEALS);
  if (present < 0 && errno != EINVAL) {
    return SystemError("fcntl(F_GET_SEALS)", errno);
  }
  if (present < 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the descriptor of ", what, " is not a memfd; create it with ",
        "memfd_create(MFD_ALLOW_SEALING)"));
  }
  const int missing = seals & ~present;
  if (missing == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the memfd of ", what, " lacks ", SealNames(missing),
      ", without which a change of its size could kill the daemon; create it "
      "with memfd_create(MFD_ALLOW_SEALING) and call fcntl(fd, F_ADD_SEALS, ",
      SealNames(missing), ") before passing it on"));
}

absl::StatusOr<SharedMapping> SharedMapping::Map(int fd, ByteCount offset,
                                                 ByteCount length,
                                                 Access access) {
  if (length.empty() || !IsPageAligned(offset)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot map ", ToString(length), " at byte ", offset.value(),
        " of a file: the length must not be 0 and the offset a multiple of ",
        kPageSize));
  }
  absl::StatusOr<ByteCount> size = FileSize(fd);
  if (!size.ok()) return size.status();
  if (offset > *size || length > *size - offset) {
    return absl::OutOfRangeError(
        absl::StrCat("cannot map ", ToString(length), " at byte ",
                     offset.value(), " of a file of ", ToString(*size)));
  }
  const int protection =
      access == Access::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  void* data =
      ::mmap(nullptr, length.value(), protection, MAP_SHARED | MAP_NORESERVE,
             fd, static_cast<off_t>(offset.value()));
  if (data == MAP_FAILED) return SystemError("mmap", errno);
  return SharedMapping(static_cast<uint8_t*>(data), length);
}

SharedMapping& SharedMapping::operator=(SharedMapping&& other) noexcept {
  if (this != &other) {
    Unmap();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, ByteCount(0));
  }
  return *this;
}

void SharedMapping::Unmap() {
  if (data_ != nullptr) ::munmap(data_, size_.value());
}

}  // namespace postcopy
