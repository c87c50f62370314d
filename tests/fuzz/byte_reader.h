// Turns a fuzzer's input into choices.
#ifndef TESTS_FUZZ_BYTE_READER_H_
#define TESTS_FUZZ_BYTE_READER_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace postcopy {

// Hands out an input from its first byte to its last, then zeros. What it
// reads for one choice does not depend on the values of others, so that a
// mutation changes little.
class ByteReader {
 public:
  explicit ByteReader(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }
  // What has not been read.
  absl::Span<const uint8_t> rest() const { return bytes_; }

  uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const uint8_t byte = bytes_.front();
    bytes_.remove_prefix(1);
    return byte;
  }
  // Little-endian.
  uint16_t TwoBytes() {
    const uint8_t low = Byte();
    return static_cast<uint16_t>(low | Byte() << 8);
  }
  uint64_t EightBytes() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 8) {
      value |= static_cast<uint64_t>(Byte()) << shift;
    }
    return value;
  }

 private:
  absl::Span<const uint8_t> bytes_;
};

}  // namespace postcopy

#endif  // TESTS_FUZZ_BYTE_READER_H_
