// Guest RAM that a test writes to as a guest would. Test-only.
#ifndef PAGESERVER_TEST_GUEST_H_
#define PAGESERVER_TEST_GUEST_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "pageserver/guest_memory.h"

namespace postcopy {

// Regions "r0", "r1", ... in one memfd, one behind the other, from kFileOffset
// on. All of it is a hole at first. Thread-safe.
class TestGuest {
 public:
  // Not 0, so that a file offset taken for a RAM offset shows.
  static constexpr uint64_t kFileOffset = 3 * kPageSize;

  // One region for each element, of that many pages.
  explicit TestGuest(const std::vector<uint64_t>& region_pages);

  const RamLayout& layout() const { return layout_; }
  uint64_t pages() const { return layout_.pages().value(); }
  int fd() const { return fd_.get(); }

  // What a daemon would open.
  std::unique_ptr<GuestMemory> OpenMemory() const;

  // Fills the page with repetitions of `value`; 0 makes a zero page that is no
  // hole.
  void Write(uint64_t page, uint64_t value);
  // The page's bytes; allocates nothing.
  std::string Page(uint64_t page) const;

  // Sets the length of the file, counted from the first byte of RAM.
  void Truncate(ByteCount ram_bytes);
  // 512-byte blocks that the file takes.
  int64_t AllocatedBlocks() const;

 private:
  const RamLayout layout_;
  const UniqueFd fd_;
};

// A page full of repetitions of `value`.
std::string PageOfValue(uint64_t value);

// Page `i` of a run's data; zeros if the run has none.
std::string PageInRun(absl::string_view data, uint64_t i);

}  // namespace postcopy

#endif  // PAGESERVER_TEST_GUEST_H_
