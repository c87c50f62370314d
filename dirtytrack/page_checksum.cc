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

constexpr uint32_t kInitialRegister = 0xFFFFFFFF;

}  // namespace

uint32_t Crc32c(absl::Span<const uint8_t> bytes) {
  return ~Extend(kInitialRegister, bytes);
}

uint32_t PlacedCrc32c(RamOffset at, uint64_t count,
                      absl::Span<const uint8_t> bytes) {
  uint8_t place[16];
  for (int i = 0; i < 8; ++i) {
    place[i] = static_cast<uint8_t>(at.value() >> (8 * i));
    place[8 + i] = static_cast<uint8_t>(count >> (8 * i));
  }
  return ~Extend(Extend(kInitialRegister, place), bytes);
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
