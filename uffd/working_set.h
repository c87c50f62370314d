// The pages that a VM touched after it was restored, in their order: what the
// next VM of the same snapshot will want first.
//
// As a file, version 1, little-endian:
//
//    0  u64  magic 0x54534B524F574350 ("PCWORKST")
//    8  u32  version, 1
//   12  u32  CRC-32C over all other bytes of the file
//   16  u64  size of a page in bytes, 4096
//   24  u64  pages of the VM's RAM
//   32  u64  bytes of the snapshot's memory file
//   40  u64  number of runs, 1 to 65536
//   48  runs of 16 bytes, the first touched first: u64 first page, u64 number
//       of pages, at least 1
//
// It ends behind the last run. A page is the RAM offset of its first byte
// divided by its size, as everywhere.
//
// Example: a VM of 1 GiB that touched page 5, then pages 0x100 and 0x101, has a
// file of 48 + 2 * 16 = 80 bytes, with 262144 at 24, 2 at 40, and then 5, 1,
// 0x100, 2.
#ifndef UFFD_WORKING_SET_H_
#define UFFD_WORKING_SET_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Runs of a working set: 1 MiB of them, in memory and as a file.
inline constexpr size_t kWorkingSetRunsMax = 64 << 10;

inline constexpr size_t kWorkingSetHeaderBytes = 48;
inline constexpr size_t kWorkingSetRunBytes = 16;
inline constexpr size_t kWorkingSetFileBytesMax =
    kWorkingSetHeaderBytes + kWorkingSetRunsMax * kWorkingSetRunBytes;

struct WorkingSet {
  // Of the VM's RAM.
  PageCount pages;
  // Of the snapshot's memory file.
  ByteCount snapshot_bytes;
  // 1 to kWorkingSetRunsMax, each of 1 or more pages of the VM.
  std::vector<PageRun> runs;
};

// The bytes of the file. REQUIRES: `set` is as said above.
std::string EncodeWorkingSet(const WorkingSet& set);

// Reads `bytes`, which anybody may have written. INVALID_ARGUMENT for what is
// no working set, FAILED_PRECONDITION for one of another version or page size,
// DATA_LOSS for one that is damaged.
absl::StatusOr<WorkingSet> DecodeWorkingSet(absl::Span<const uint8_t> bytes);

// Reads the file at `path`. NOT_FOUND if there is none; else as above, or
// INTERNAL and PERMISSION_DENIED if it cannot be read. The message says what to
// do.
absl::StatusOr<WorkingSet> ReadWorkingSet(const std::string& path);

// Replaces the file at `path`: whoever reads it finds the old one or the new,
// also after a crash. On failure the old one stays. REQUIRES: as of
// EncodeWorkingSet.
absl::Status WriteWorkingSet(const std::string& path, const WorkingSet& set);

// OK if a file could be made beside `path`, so that WriteWorkingSet has a
// chance.
absl::Status CheckWorkingSetFolder(const std::string& path);

}  // namespace postcopy

#endif  // UFFD_WORKING_SET_H_
