// The one message that Firecracker sends to its page-fault handler: a JSON
// array that says where the guest's RAM is.
#ifndef CMD_FIRECRACKER_HANDSHAKE_H_
#define CMD_FIRECRACKER_HANDSHAKE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Bytes of a handshake, white space around the array included. A region takes
// some 150, and there are at most kMaxRegions.
inline constexpr size_t kHandshakeBytesMax = 64 * 1024;
// Arrays and objects inside one another. Firecracker uses two; the others are
// for keys that are not known yet.
inline constexpr size_t kHandshakeNestingMax = 32;

// One contiguous block of guest RAM in the VMM, as ParseHandshake promises it.
struct FirecrackerRegion {
  // Of the first byte; a multiple of page_size.
  HostAddress host_address;
  // A positive multiple of page_size; host_address + size does not overflow.
  ByteCount size;
  // Of the first byte in the snapshot's memory file, in bytes; a multiple of
  // 4096; offset + size does not overflow.
  uint64_t offset = 0;
  // Of the memory behind it: 4096, 2 MiB or 1 GiB.
  ByteCount page_size{kPageSize};

  friend bool operator==(const FirecrackerRegion&,
                         const FirecrackerRegion&) = default;
};

// Finds the end of the array, which is not framed, in a stream of bytes. Looks
// at each byte once, so that bytes that come one by one cost no more than
// others. It accepts all that is a JSON array of objects, and some that is not:
// ParseHandshake decides. A value; not thread-safe.
class HandshakeScanner {
 public:
  // Looks at the bytes that come next; does nothing once complete().
  // INVALID_ARGUMENT, with what to change, as soon as no byte to come could
  // make it a handshake, or a limit is passed. After that it is not to be
  // called again.
  absl::Status Scan(absl::string_view bytes);

  // True if the array has ended.
  bool complete() const { return complete_; }

  // How many bytes belong to the handshake: those up to the array's last, white
  // space before it included; before complete(), all bytes so far.
  size_t bytes() const { return bytes_; }

 private:
  absl::Status Step(char c);
  void StepInString(char c);
  absl::Status StepOutside(char c);
  absl::Status Open(bool is_object);
  absl::Status Close(bool is_object);

  size_t bytes_ = 0;
  // Open arrays and objects, at most kHandshakeNestingMax.
  size_t depth_ = 0;
  // Bit N: what is open at depth N + 1 is an object.
  uint32_t objects_ = 0;
  bool in_string_ = false;
  // The byte before was a backslash that escapes this one.
  bool escaped_ = false;
  bool complete_ = false;
};

// The regions of a whole handshake, in its order; 1..kMaxRegions of them, no
// two of which share an address. Unknown keys are ignored; page_size wins over
// page_size_kib, its old name, which is in bytes as well. White space may
// follow the array, nothing else. INVALID_ARGUMENT names the region by its
// index, from 0, and says what to change. Thread-safe.
absl::StatusOr<std::vector<FirecrackerRegion>> ParseHandshake(
    absl::string_view json);

}  // namespace postcopy

#endif  // CMD_FIRECRACKER_HANDSHAKE_H_
