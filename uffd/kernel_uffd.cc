#include "uffd/kernel_uffd.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "uffd/uffd_abi.h"

namespace postcopy {
namespace {

struct UnservedFeature {
  uint64_t bit;
  const char* name;
  const char* why;
};

// docs/adr/0032 has more of the first.
constexpr UnservedFeature kUnservedFeatures[] = {
    {UFFD_FEATURE_EVENT_FORK, "EVENT_FORK",
     "a child of the VMM would need its memory served as that of a second VM; "
     "keep children out of guest memory by madvise(MADV_DONTFORK)"},
    {UFFD_FEATURE_SIGBUS, "SIGBUS",
     "missing pages would kill the VMM instead of being fetched"},
};

// The contents of a small file of /proc; empty if it cannot be read.
std::string ReadSmallFile(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 1024> buffer;
  const ssize_t length = ::read(fd.get(), buffer.data(), buffer.size());
  return length > 0 ? std::string(buffer.data(), length) : std::string();
}

// The features in use, as fs/userfaultfd.c prints them:
// "API:\taa:FEATURES:...".
absl::StatusOr<uint64_t> FeaturesOf(int fd) {
  const std::string info =
      ReadSmallFile(absl::StrCat("/proc/self/fdinfo/", fd));
  const size_t at = info.find("\nAPI:\t");
  uint64_t api = 0;
  uint64_t features = 0;
  if (at == std::string::npos ||
      std::sscanf(info.c_str() + at, "\nAPI:\t%" SCNx64 ":%" SCNx64, &api,
                  &features) != 2 ||
      api != UFFD_API) {
    return absl::InvalidArgumentError(
        "the descriptor is not a userfaultfd: send what userfaultfd(2) or "
        "/dev/userfaultfd returned");
  }
  return features;
}

absl::Status CheckFeatures(uint64_t features) {
  if (!(features & kUffdFeatureInitialized)) {
    return absl::InvalidArgumentError(
        "the userfaultfd is not initialised: do ioctl(UFFDIO_API) before "
        "sending it");
  }
  for (const UnservedFeature& feature : kUnservedFeatures) {
    if (features & feature.bit) {
      return absl::InvalidArgumentError(
          absl::StrCat("the userfaultfd has UFFD_FEATURE_", feature.name,
                       ", which is not served: ", feature.why,
                       "; do ioctl(UFFDIO_API) without it"));
    }
  }
  return absl::OkStatus();
}

absl::Status SetNonBlocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat(
      "cannot make a userfaultfd non-blocking: ", ::strerrordesc_np(errno)));
}

uffdio_range RangeOf(HostAddress address, ByteCount length) {
  return {.start = address.value(), .len = length.value()};
}

// `done` is the field in which the kernel tells bytes done, or -errno again.
UffdResult ResultOf(int returned, int64_t done) {
  return {.error = returned == 0 ? 0 : errno,
          .done = ByteCount(std::max<int64_t>(done, 0))};
}

// For ioctls that do all or nothing.
UffdResult ResultOf(int returned, ByteCount length) {
  return ResultOf(returned, returned == 0 ? length.value() : 0);
}

// read() that waits for nothing even if the VMM, which shares the open file
// description, has taken O_NONBLOCK off: this daemon's threads are not its to
// stop. Kernels older than 6.9 cannot promise that and use read().
ssize_t ReadWithoutWaiting(int fd, void* buffer, size_t size) {
  const iovec target = {.iov_base = buffer, .iov_len = size};
  ssize_t bytes = 0;
  do {
    bytes = ::preadv2(fd, &target, 1, /*offset=*/-1, RWF_NOWAIT);
    if (bytes < 0 && errno == EOPNOTSUPP) bytes = ::read(fd, buffer, size);
  } while (bytes < 0 && errno == EINTR);
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KernelUffd>> KernelUffd::Adopt(UniqueFd fd) {
  absl::StatusOr<uint64_t> features = FeaturesOf(fd.get());
  if (!features.ok()) return features.status();
  absl::Status status = CheckFeatures(*features);
  if (status.ok()) status = SetNonBlocking(fd.get());
  if (!status.ok()) return status;
  return std::unique_ptr<KernelUffd>(new KernelUffd(std::move(fd), *features));
}

UffdRegistration KernelUffd::Register(HostAddress address, ByteCount length,
                                      uint64_t modes) {
  uffdio_register request = {
      .range = RangeOf(address, length), .mode = modes, .ioctls = 0};
  const int returned = ::ioctl(fd_.get(), UFFDIO_REGISTER, &request);
  return {.error = returned == 0 ? 0 : errno, .ioctls = request.ioctls};
}

UffdResult KernelUffd::Unregister(HostAddress address, ByteCount length) {
  uffdio_range range = RangeOf(address, length);
  const UffdResult result =
      ResultOf(::ioctl(fd_.get(), UFFDIO_UNREGISTER, &range), length);
  // The kernel wakes waiters before it takes the mapping's own lock: a fault
  // that holds that lock meanwhile begins to wait when all have been woken.
  // Now none can begin any more.
  Wake(address, length);
  return result;
}

UffdResult KernelUffd::Copy(HostAddress address, const uint8_t* source,
                            ByteCount length, bool wake) {
  uffdio_copy request = {.dst = address.value(),
                         .src = reinterpret_cast<uintptr_t>(source),
                         .len = length.value(),
                         .mode = wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE,
                         .copy = 0};
  const int returned = ::ioctl(fd_.get(), UFFDIO_COPY, &request);
  return ResultOf(returned, int64_t{request.copy});
}

UffdResult KernelUffd::ZeroPage(HostAddress address, ByteCount length,
                                bool wake) {
  uffdio_zeropage request = {.range = RangeOf(address, length),
                             .mode = wake ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE,
                             .zeropage = 0};
  const int returned = ::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &request);
  return ResultOf(returned, int64_t{request.zeropage});
}

UffdResult KernelUffd::Continue(HostAddress address, ByteCount length,
                                bool wake) {
  uffdio_continue request = {.range = RangeOf(address, length),
                             .mode = wake ? 0 : UFFDIO_CONTINUE_MODE_DONTWAKE,
                             .mapped = 0};
  const int returned = ::ioctl(fd_.get(), UFFDIO_CONTINUE, &request);
  return ResultOf(returned, int64_t{request.mapped});
}

UffdResult KernelUffd::Unprotect(HostAddress address, ByteCount length) {
  uffdio_writeprotect request = {.range = RangeOf(address, length), .mode = 0};
  return ResultOf(::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &request), length);
}

UffdResult KernelUffd::Wake(HostAddress address, ByteCount length) {
  uffdio_range range = RangeOf(address, length);
  return ResultOf(::ioctl(fd_.get(), UFFDIO_WAKE, &range), length);
}

UffdResult KernelUffd::Poison(HostAddress address, ByteCount length) {
  UffdioPoison request = {
      .range = RangeOf(address, length), .mode = 0, .updated = 0};
  const int returned = ::ioctl(fd_.get(), kUffdioPoison, &request);
  return ResultOf(returned, request.updated);
}

UffdReadResult KernelUffd::Read(absl::Span<uffd_msg> messages) {
  const ssize_t bytes = ReadWithoutWaiting(fd_.get(), messages.data(),
                                           messages.size() * sizeof(uffd_msg));
  if (bytes < 0) return {.error = errno, .messages = 0};
  // Never a part of a message: userfaultfd_ctx_read.
  return {.error = 0, .messages = bytes / sizeof(uffd_msg)};
}

}  // namespace postcopy
