// Memory in which touches of missing pages are page faults.
#ifndef CMD_FAULTREPLAY_FAULTING_MEMORY_H_
#define CMD_FAULTREPLAY_FAULTING_MEMORY_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// A mapped memfd, empty at first, as guest RAM is at a destination. Whoever
// owns it registers it with a userfaultfd. Thread-safe but for CountHere.
class FaultingMemory {
 public:
  static absl::StatusOr<FaultingMemory> Create(PageCount pages);

  int fd() const { return fd_.get(); }
  uint8_t* data() const { return mapping_.data(); }
  ByteCount size() const { return mapping_.size(); }

  // By the page cache: whether it is mapped does not matter.
  bool IsHere(PageIndex page) const;
  PageCount CountHere();

  const uint8_t* Touch(PageIndex page, bool write) const {
    uint8_t* const at = mapping_.data() + OffsetOf(page).value();
    if (write) {
      // Takes a fault for writing and leaves what is there.
      __atomic_fetch_or(at, 0, __ATOMIC_RELAXED);
    } else {
      (void)*static_cast<volatile uint8_t*>(at);
    }
    return at;
  }

 private:
  FaultingMemory(UniqueFd fd, SharedMapping mapping)
      : fd_(std::move(fd)), mapping_(std::move(mapping)) {}

  UniqueFd fd_;
  SharedMapping mapping_;
  std::vector<unsigned char> incore_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_FAULTING_MEMORY_H_
