// Reads of files that complete in any order: io_uring, and the seam for tests.
#ifndef UFFD_READ_RING_H_
#define UFFD_READ_RING_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace postcopy {

// The most reads that a ring may have under way.
inline constexpr uint32_t kMaxRingDepth = 1024;

// Belongs to one thread at a time, except Wake.
class ReadRing {
 public:
  struct Result {
    // As given to Read.
    uint32_t tag = 0;
    // Bytes read, perhaps fewer than asked; 0 at the end of the file; -errno.
    int32_t result = 0;
  };

  virtual ~ReadRing() = default;

  // Prepares one read, which the next Wait hands over. `into` belongs to
  // the ring until the result has come. REQUIRES: fewer reads under way than
  // the ring's depth; into.size() <= 2^30.
  virtual void Read(uint32_t tag, int fd, uint64_t offset,
                    absl::Span<uint8_t> into) = 0;

  // Hands over what is prepared and blocks until there is a result, or Wake
  // was called since the last Wait. Returns how many results it wrote, from
  // the front of `results`, which must not be empty; 0 means nothing. An error
  // is for good: what is under way remains with the kernel.
  virtual absl::StatusOr<size_t> Wait(absl::Span<Result> results) = 0;

  // Ends the Wait that is running, or else the next one. Any thread.
  virtual void Wake() = 0;
};

// A ring of io_uring (io_uring(7), Linux 5.6). Destruction does not wait for
// what is under way. Errors: FAILED_PRECONDITION, saying what to allow, where
// io_uring is switched off or too old; RESOURCE_EXHAUSTED for memory or
// descriptors; else INTERNAL. REQUIRES: 1 <= depth <= kMaxRingDepth.
absl::StatusOr<std::unique_ptr<ReadRing>> CreateIoUring(uint32_t depth);

// What a failed io_uring_setup(2) means. For CreateIoUring and its test.
absl::Status IoUringError(int error);

}  // namespace postcopy

#endif  // UFFD_READ_RING_H_
