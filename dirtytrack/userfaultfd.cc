#include "dirtytrack/userfaultfd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

absl::Status CreationError(int error) {
  const std::string reason = ::strerrordesc_np(error);
  if (error == EPERM || error == EACCES) {
    return absl::PermissionDeniedError(absl::StrCat(
        "cannot create a userfaultfd: ", reason,
        "; grant access to /dev/userfaultfd, or CAP_SYS_PTRACE, or set "
        "vm.unprivileged_userfaultfd=1"));
  }
  if (error == EINVAL || error == ENOSYS || error == ENOENT) {
    return absl::UnimplementedError(
        absl::StrCat("the kernel has no such userfaultfd: ", reason));
  }
  return absl::InternalError(
      absl::StrCat("cannot create a userfaultfd: ", reason));
}

UniqueFd OpenFromDevice() {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device.valid()) return UniqueFd();
  return UniqueFd(
      ::ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
}

}  // namespace

absl::StatusOr<NewUserfaultfd> CreateUserfaultfd(uint64_t features) {
  NewUserfaultfd created{OpenFromDevice(), "/dev/userfaultfd"};
  if (!created.fd.valid()) {
    created = {UniqueFd(static_cast<int>(
                   ::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))),
               "userfaultfd(2)"};
  }
  if (!created.fd.valid()) return CreationError(errno);
  uffdio_api api = {.api = UFFD_API, .features = features, .ioctls = 0};
  if (::ioctl(created.fd.get(), UFFDIO_API, &api) != 0) {
    return CreationError(errno);
  }
  return created;
}

}  // namespace postcopy
