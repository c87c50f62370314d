// The memory of another process.
#ifndef CMD_FAULTREPLAY_PROCESS_MEMORY_H_
#define CMD_FAULTREPLAY_PROCESS_MEMORY_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// A line of /proc/PID/maps.
struct Mapping {
  uint64_t begin = 0;
  uint64_t end = 0;  // exclusive
  std::string permissions;
  uint64_t inode = 0;
  // Of the file, or "[heap]", "[stack]", …; often empty.
  std::string name;

  friend bool operator==(const Mapping&, const Mapping&) = default;
};

// INVALID_ARGUMENT names the line that is none.
absl::StatusOr<std::vector<Mapping>> ParseMappings(absl::string_view text);
absl::StatusOr<std::vector<Mapping>> ReadMappings(pid_t pid);

// Those that are private, anonymous, writable and not executable, at least
// `bytes_min` long: the largest, at most `count_max`, by address. Not the main
// thread's stack, which grows, and what the kernel has put there.
std::vector<Mapping> ChooseRecorded(std::vector<Mapping> mappings,
                                    ByteCount bytes_min, size_t count_max);

// Reads and tells what is there. Thread-safe.
class ProcessMemory {
 public:
  static absl::StatusOr<ProcessMemory> Open(pid_t pid);

  // INTERNAL if not all of it can be read.
  absl::Status Read(uint64_t address, char* bytes, size_t size) const;
  absl::Status Write(uint64_t address, const char* bytes, size_t size) const;

  // Writes the pages of `mapping` that have content, in memory or swapped out,
  // to `fd` from `offset` on; the others become a hole. Returns how many have.
  absl::StatusOr<PageCount> Save(const Mapping& mapping, int fd,
                                 uint64_t offset) const;

 private:
  ProcessMemory(UniqueFd memory, UniqueFd pagemap)
      : memory_(std::move(memory)), pagemap_(std::move(pagemap)) {}

  UniqueFd memory_;
  UniqueFd pagemap_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_PROCESS_MEMORY_H_
