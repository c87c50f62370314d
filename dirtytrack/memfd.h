// Memory that two processes share through a descriptor.
//
// Who maps a file that another process can truncate gets SIGBUS at its next
// access. So memory that comes from a VMM is mapped only after RequireSeals
// has seen F_SEAL_SHRINK, and CreateMemfd sets the seals it is asked for
// before anybody else has the descriptor. (Only memfds can carry that seal: a
// file of a full disk, of FUSE or of a size-limited tmpfs, each with hangs and
// SIGBUS of its own, cannot pass for one.)
#ifndef DIRTYTRACK_MEMFD_H_
#define DIRTYTRACK_MEMFD_H_

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// A new memfd of `size` zero bytes, close-on-exec, with `seals` (F_SEAL_*,
// or 0) applied; more can be added. `name` shows in /proc/PID/fd and is at most
// 249 bytes. Costs no memory until touched. Errors: INVALID_ARGUMENT for the
// name or a size above 2^63 - 1, RESOURCE_EXHAUSTED for descriptors or memory,
// else INTERNAL.
absl::StatusOr<UniqueFd> CreateMemfd(absl::string_view name, ByteCount size,
                                     int seals);

// A duplicate of `fd`, close-on-exec. RESOURCE_EXHAUSTED if this process may
// have no more descriptors, INVALID_ARGUMENT if `fd` is not open.
absl::StatusOr<UniqueFd> Duplicate(int fd);

// The length of the file behind `fd`; INVALID_ARGUMENT if `fd` is not open.
absl::StatusOr<ByteCount> FileSize(int fd);

// OK if `fd` carries all of `seals`. Else FAILED_PRECONDITION, which tells the
// VMM's author in one sentence which seals of `what` ("guest RAM", "the dirty
// log") are missing and how to set them.
absl::Status RequireSeals(int fd, int seals, absl::string_view what);

// A MAP_SHARED mapping of part of a file. Move-only; unmaps at destruction.
// What data() points to is as thread-safe as any memory; the object itself is
// as a pointer is. The mapping stays valid after the descriptor is closed.
class SharedMapping {
 public:
  enum class Access { kReadOnly, kReadWrite };

  // Maps the bytes [offset, offset + length) of `fd`. Errors:
  // INVALID_ARGUMENT if length is 0 or offset is not a multiple of kPageSize;
  // OUT_OF_RANGE if the file ends before the range does (touching what lies
  // beyond would be SIGBUS); PERMISSION_DENIED if `fd` or its seals forbid the
  // access; RESOURCE_EXHAUSTED if the kernel lacks memory; else INTERNAL.
  static absl::StatusOr<SharedMapping> Map(int fd, ByteCount offset,
                                           ByteCount length, Access access);

  // Holds nothing: data() is null and size() is 0.
  SharedMapping() = default;
  SharedMapping(SharedMapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, ByteCount(0))) {}
  SharedMapping& operator=(SharedMapping&& other) noexcept;
  ~SharedMapping() { Unmap(); }

  uint8_t* data() const { return data_; }
  ByteCount size() const { return size_; }

 private:
  SharedMapping(uint8_t* data, ByteCount size) : data_(data), size_(size) {}
  void Unmap();

  uint8_t* data_ = nullptr;
  ByteCount size_;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_MEMFD_H_
