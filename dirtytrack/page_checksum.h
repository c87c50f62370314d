// What is computed over the bytes of a page: its checksum, and whether there
// is anything in it. Both run at memory speed (ISA-L picks the instructions of
// the CPU at run time). Thread-safe.
#ifndef DIRTYTRACK_PAGE_CHECKSUM_H_
#define DIRTYTRACK_PAGE_CHECKSUM_H_

#include <cstdint>

#include "absl/types/span.h"
#include "dirtytrack/types.h"

namespace postcopy {

// CRC-32C (Castagnoli) as RFC 3720 (iSCSI) defines it: initial value and final
// XOR are 0xFFFFFFFF. Of no bytes: 0.
uint32_t Crc32c(absl::Span<const uint8_t> bytes);

// What guards bytes that belong to a place in guest RAM on their way: CRC-32C
// over `at` and `count` as eight little-endian bytes each, then `bytes`. Right
// bytes at a wrong place are wrong bytes.
uint32_t PlacedCrc32c(RamOffset at, uint64_t count,
                      absl::Span<const uint8_t> bytes);

// PlacedCrc32c of a run of pages and its content; `data` is empty if all pages
// are zero.
uint32_t RunChecksum(PageRun pages, absl::Span<const uint8_t> data);

// What guards the numbers of a request on their way: CRC-32C over each of them
// as eight little-endian bytes.
uint32_t NumbersCrc32c(absl::Span<const uint64_t> numbers);

// True if every byte is 0; also true for no bytes.
bool IsZero(absl::Span<const uint8_t> bytes);

}  // namespace postcopy

#endif  // DIRTYTRACK_PAGE_CHECKSUM_H_
