#include "cmd/vmm_library/private_memory.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

// Of an entry of a pagemap: Documentation/admin-guide/mm/pagemap.rst.
constexpr uint64_t kPresent = uint64_t{1} << 63;
constexpr uint64_t kSwapped = uint64_t{1} << 62;
constexpr size_t kEntriesPerRead = 8192;

absl::Status Error(absl::StatusCode code, const std::string& region,
                   absl::string_view problem) {
  return absl::Status(
      code, absl::StrCat("private region \"", region, "\": ", problem));
}

absl::Status Empty(const std::string& region, HostAddress address,
                   ByteCount length) {
  void* const memory = reinterpret_cast<void*>(address.value());
  if (::madvise(memory, length.value(), MADV_DONTNEED) == 0) {
    return absl::OkStatus();
  }
  if (errno == EINVAL) {
    return Error(absl::StatusCode::kFailedPrecondition, region,
                 "it cannot be emptied; do not lock it in memory (mlock) "
                 "before the guest runs");
  }
  return Error(absl::StatusCode::kInvalidArgument, region,
               "it is not mapped in full");
}

absl::Status Register(int userfaultfd, const std::string& region,
                      HostAddress address, ByteCount length) {
  uffdio_register request = {};
  request.range = {.start = address.value(), .len = length.value()};
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(userfaultfd, UFFDIO_REGISTER, &request) == 0) {
    return absl::OkStatus();
  }
  if (errno == EBUSY) {
    return Error(absl::StatusCode::kFailedPrecondition, region,
                 "it is registered with another userfaultfd");
  }
  return Error(
      absl::StatusCode::kInvalidArgument, region,
      absl::StrCat("it cannot be registered (", ::strerrordesc_np(errno),
                   "); it must be of no file, and whole pages"));
}

}  // namespace

absl::Status CheckPrivateMemoryIsEmpty(const std::string& region,
                                       HostAddress address, ByteCount length) {
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  std::array<uint64_t, kEntriesPerRead> entries;
  uint64_t page = address.value() / kPageSize;
  uint64_t left = length.value() / kPageSize;
  while (left > 0) {
    const size_t wanted = std::min<uint64_t>(left, entries.size());
    const ssize_t bytes =
        ::pread(pagemap.get(), entries.data(), wanted * sizeof(uint64_t),
                static_cast<off_t>(page * sizeof(uint64_t)));
    if (bytes < 0 && errno == EINTR) continue;
    const size_t read = bytes <= 0 ? 0 : bytes / sizeof(uint64_t);
    if (read == 0) {
      return Error(absl::StatusCode::kInternal, region,
                   "/proc/self/pagemap, which tells whether it is empty, "
                   "cannot be read");
    }
    if (std::any_of(entries.begin(), entries.begin() + read, [](uint64_t e) {
          return (e & (kPresent | kSwapped)) != 0;
        })) {
      return Error(absl::StatusCode::kFailedPrecondition, region,
                   "somebody has touched it while it was being attached; a "
                   "destination's private memory must be left alone until "
                   "load_device_state");
    }
    page += read;
    left -= read;
  }
  return absl::OkStatus();
}

absl::Status EmptyPrivateMemory(int userfaultfd, const std::string& region,
                                HostAddress address, ByteCount length) {
  absl::Status status = Empty(region, address, length);
  if (status.ok()) status = Register(userfaultfd, region, address, length);
  if (status.ok()) {
    status = CheckPrivateMemoryIsEmpty(region, address, length);
  }
  return status;
}

}  // namespace postcopy
