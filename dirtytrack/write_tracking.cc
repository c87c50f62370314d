#include "dirtytrack/write_tracking.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dirtytrack/pagemap_scan_abi.h"
#include "dirtytrack/userfaultfd.h"

namespace postcopy {
namespace {

// WP_ASYNC: a write fault is resolved in the kernel. WP_UNPOPULATED: pages
// that are not there can be protected too, so that reading one does not dirty
// it. The last is for memfd, tmpfs and hugetlbfs.
constexpr uint64_t kFeatures = kUffdFeatureWpAsync | kUffdFeatureWpUnpopulated |
                               UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

absl::Status RegistrationError(const HostRange& range, int error) {
  const std::string what = absl::StrCat(
      "cannot track writes to the ", ToString(range.length), " at ",
      ToString(range.address), ": ", ::strerrordesc_np(error));
  switch (error) {
    case EINVAL:
      return absl::InvalidArgumentError(
          absl::StrCat(what, "; give whole pages of memory that is mapped"));
    case EBUSY:
      return absl::FailedPreconditionError(absl::StrCat(
          what, "; another userfaultfd has registered it: close that first"));
    case EPERM:
      return absl::PermissionDeniedError(absl::StrCat(
          what, "; the memory must be mapped from a file opened for writing"));
    case ENOMEM:
      return absl::ResourceExhaustedError(
          absl::StrCat(what, "; raise vm.max_map_count, or free memory"));
    default:
      return absl::InternalError(what);
  }
}

absl::Status Register(int uffd, const HostRange& range) {
  // Transparent huge pages are not tracked in parts (pagemap_scan_source.h).
  // hugetlbfs refuses, and needs it not; what is huge already, Start finds.
  ::madvise(reinterpret_cast<void*>(range.address.value()),
            range.length.value(), MADV_NOHUGEPAGE);
  uffdio_register request = {
      .range = {.start = range.address.value(), .len = range.length.value()},
      .mode = UFFDIO_REGISTER_MODE_WP,
      .ioctls = 0};
  if (::ioctl(uffd, UFFDIO_REGISTER, &request) == 0) return absl::OkStatus();
  return RegistrationError(range, errno);
}

}  // namespace

absl::StatusOr<WriteTracking> WriteTracking::Create(
    absl::Span<const HostRange> ranges) {
  absl::StatusOr<NewUserfaultfd> uffd = CreateUserfaultfd(kFeatures);
  if (absl::IsUnimplemented(uffd.status())) {
    return absl::UnimplementedError(
        absl::StrCat(uffd.status().message(),
                     "; tracking writes needs Linux 6.7: use a dirty log"));
  }
  if (!uffd.ok()) return uffd.status();
  for (const HostRange& range : ranges) {
    if (absl::Status s = Register(uffd->fd.get(), range); !s.ok()) return s;
  }
  UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) {
    const int error = errno;
    return absl::Status(
        error == EMFILE || error == ENFILE
            ? absl::StatusCode::kResourceExhausted
            : absl::StatusCode::kPermissionDenied,
        absl::StrCat(
            "cannot open /proc/self/pagemap: ", ::strerrordesc_np(error),
            "; mount /proc for the VMM, and allow it descriptors"));
  }
  return WriteTracking(std::move(uffd->fd), std::move(pagemap));
}

}  // namespace postcopy
