#include "cmd/vmm_channel/open_userfaultfd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

constexpr char kDevice[] = "/dev/userfaultfd";
constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;

// Invalid, with errno set, if the device does not give one.
UniqueFd FromDevice() {
  UniqueFd device(::open(kDevice, O_RDWR | O_CLOEXEC));
  if (!device.valid()) return UniqueFd();
  UniqueFd fd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, kFlags));
  // Closing the device must not hide why this failed.
  const int error = errno;
  device.Reset();
  errno = error;
  return fd;
}

absl::Status Refused(int device_error, int call_error) {
  if (call_error == ENOSYS) {
    return absl::UnimplementedError(
        "this kernel has no userfaultfd (CONFIG_USERFAULTFD)");
  }
  return absl::PermissionDeniedError(absl::StrCat(
      kDevice, ": ", std::strerror(device_error),
      "; the userfaultfd system call: ", std::strerror(call_error),
      ". Give the VMM's user access to ", kDevice,
      " (group and mode 0660; Linux 6.1), or the VMM CAP_SYS_PTRACE, or set ",
      "the sysctl vm.unprivileged_userfaultfd=1"));
}

absl::Status EnableApi(int fd) {
  uffdio_api api = {};
  api.api = UFFD_API;
  // No features: events would have to be handled, and the rest is not needed.
  // The kernel answers with what it could do.
  if (::ioctl(fd, UFFDIO_API, &api) != 0) {
    return absl::UnimplementedError(
        absl::StrCat("UFFDIO_API: ", std::strerror(errno)));
  }
  if ((api.features & UFFD_FEATURE_MISSING_SHMEM) == 0) {
    return absl::UnimplementedError(
        "this kernel's userfaultfd cannot watch shared memory "
        "(UFFD_FEATURE_MISSING_SHMEM); Linux 4.11 can");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UserfaultFd> OpenUserfaultfd() {
  UserfaultFd result{FromDevice(), kDevice};
  if (!result.fd.valid()) {
    const int device_error = errno;
    result = {UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, kFlags))),
              "the userfaultfd system call"};
    if (!result.fd.valid()) return Refused(device_error, errno);
  }
  if (absl::Status status = EnableApi(result.fd.get()); !status.ok()) {
    return status;
  }
  return result;
}

}  // namespace postcopy
