// The most recent faults, from the fault loop to the background.
#ifndef UFFD_FAULT_TRAIL_H_
#define UFFD_FAULT_TRAIL_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"

namespace postcopy {

// A ring of fixed size. One thread writes, one reads, at the same time. The
// writer never waits: where the reader is late, the oldest are overwritten, and
// some of those read then may be newer ones, read twice. They are hints.
class FaultTrail {
 public:
  // Faults kept for the reader.
  static constexpr size_t kLength = 256;

  // Notes `unit`: a power of two of pages. Wait-free, no allocation.
  void Add(PageRun unit) {
    const uint64_t at = added_.load(std::memory_order_relaxed);
    // Relaxed: the release below is what the reader acquires.
    slots_[at % kLength].store(Pack(unit), std::memory_order_relaxed);
    added_.store(at + 1, std::memory_order_release);
  }

  // Calls visit(PageRun) for each fault not read yet, the oldest first.
  template <typename Visit>
  void Read(Visit visit) {
    const uint64_t end = added_.load(std::memory_order_acquire);
    if (end - read_ > kLength) read_ = end - kLength;
    for (; read_ < end; ++read_) {
      visit(Unpack(slots_[read_ % kLength].load(std::memory_order_relaxed)));
    }
  }

 private:
  // The first page above the exponent of how many there are.
  static constexpr int kExponentBits = 6;
  static_assert(kMaxRamBytes.value() / kPageSize <=
                uint64_t{1} << (64 - kExponentBits));

  static uint64_t Pack(PageRun unit) {
    return unit.first.value() << kExponentBits |
           static_cast<uint64_t>(std::countr_zero(unit.count.value()));
  }
  static PageRun Unpack(uint64_t packed) {
    return {PageIndex(packed >> kExponentBits),
            PageCount(uint64_t{1} << (packed % (1 << kExponentBits)))};
  }

  std::array<std::atomic<uint64_t>, kLength> slots_{};
  std::atomic<uint64_t> added_{0};
  uint64_t read_ = 0;  // of the reader
};

}  // namespace postcopy

#endif  // UFFD_FAULT_TRAIL_H_
