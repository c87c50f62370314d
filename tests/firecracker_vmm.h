// A VMM that restores a guest as Firecracker does: written from the description
// of its handshake, not with our own code for it. Test-only.
#ifndef TESTS_FIRECRACKER_VMM_H_
#define TESTS_FIRECRACKER_VMM_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Its memory is anonymous, of 4 KiB or 2 MiB pages, in this process.
class FirecrackerVmm {
 public:
  struct Region {
    size_t bytes = 0;
    bool huge = false;
    uint64_t file_offset = 0;
  };
  struct Dialect {
    // The key of Firecracker before 1.10, or the one since.
    bool old_page_size_key = false;
    bool unknown_keys = false;
    // Bytes of the JSON in one send(2); 0: all. The descriptor goes with the
    // first.
    size_t piece = 0;
  };

  // Maps the memory and registers it for missing pages, with EVENT_REMOVE.
  // Null, with a sentence in `reason`, where the machine has no userfaultfd or
  // not enough huge pages.
  static std::unique_ptr<FirecrackerVmm> Create(std::vector<Region> regions,
                                                std::string* reason);
  ~FirecrackerVmm();

  // Connects and sends the handshake. False if that fails.
  bool Connect(const std::string& socket_path, const Dialect& dialect);
  // True when the handler has closed the connection; waits for that.
  bool IsTurnedAway() const;
  // As when the process ends, but that the memory stays.
  void Disconnect() { socket_ = UniqueFd(); }

  uint8_t* memory(size_t region) const { return memory_[region]; }
  // The balloon takes the range: madvise(MADV_DONTNEED).
  bool Inflate(size_t region, size_t offset, size_t bytes) const;

  // Whether the page at `offset` is there, without touching it.
  bool IsPresent(size_t region, size_t offset) const;

 private:
  FirecrackerVmm(std::vector<Region> regions, UniqueFd userfaultfd);

  std::string Handshake(const Dialect& dialect) const;

  const std::vector<Region> regions_;
  std::vector<uint8_t*> memory_;
  // Firecracker keeps its own, so that a handler's death makes no zeros.
  UniqueFd userfaultfd_;
  UniqueFd socket_;
};

}  // namespace postcopy

#endif  // TESTS_FIRECRACKER_VMM_H_
