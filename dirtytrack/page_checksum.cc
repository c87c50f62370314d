#include "dirtytrack/page_checksum.h"

#include <isa-l.h>

#include <algorithm>
#include <cstddef>

namespace postcopy {

namespace {

// Takes and returns the register: ISA-L leaves both inversions to its caller.
uint32_t Extend(uint32_t crc, absl::Span<const uint8_t> bytes) {
  // crc32_iscsi takes an int.
  constexpr size_t kChunkBytes = size_t{1} << 30;
  while (!bytes.empty()) {
    const size_t n = std::min(bytes.size(), kChunkBytes);
    // Declared without const, but it only reads.
    crc = crc32_iscsi(const_cast<uint8_t*>(bytes.data()), static_cast<int>(n),
                      crc);
    bytes.remove_prefix(n);
  }
  return crc;
}

uint32_t Extend(uint32_t crc, uint64_t number) {
  uint8_t bytes[8];
  for (int i = 0; i < 8; ++i) {
    bytes[i] = static_cast<uint8_t>(number >> (8 * i));
  }
  return Extend(crc, bytes);
}

constexpr uint32_t kInitialRegister = 0xFFFFFFFF;

}  // namespace

uint32_t Crc32c(absl::Span<const uint8_t> bytes) {
  return ~Extend(kInitialRegister, bytes);
}

uint32_t PlacedCrc32c(RamOffset at, uint64_t count,
                      absl::Span<const uint8_t> bytes) {
  const uint32_t place = Extend(Extend(kInitialRegister, at.value()), count);
  return ~Extend(place, bytes);
}

uint32_t NumbersCrc32c(absl::Span<const uint64_t> numbers) {
  uint32_t crc = kInitialRegister;
  for (const uint64_t number : numbers) crc = Extend(crc, number);
  return ~crc;
}

uint32_t RunChecksum(PageRun pages, absl::Span<const uint8_t> data) {
  return PlacedCrc32c(OffsetOf(pages.first), pages.count.value(), data);
}

bool IsZero(absl::Span<const uint8_t> bytes) {
  if (bytes.empty()) return true;
  return isal_zero_detect(const_cast<uint8_t*>(bytes.data()), bytes.size()) ==
         0;
}

}  // namespace postcopy
