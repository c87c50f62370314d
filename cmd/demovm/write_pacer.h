// Holds a vCPU to a rate of page writes.
#ifndef CMD_DEMOVM_WRITE_PACER_H_
#define CMD_DEMOVM_WRITE_PACER_H_

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "cmd/demovm/guest_abi.h"

namespace postcopy::demovm {

// The VMM's clock decides, not the guest's: TSCs differ between hosts, and a
// migrated vCPU is on time at once. A value; used by one thread.
class WritePacer {
 public:
  using Clock = std::chrono::steady_clock;

  // 0: no limit.
  explicit WritePacer(double bytes_per_second)
      : per_write_(bytes_per_second == 0 ? 0
                                         : kGuestPageBytes / bytes_per_second) {
  }

  // The vCPU has written `writes` pages since it was started, whenever and
  // wherever that was, and goes on at the time that this returns. What it was
  // late (waiting for RAM, or paused) it may catch up, but only kCatchUp of it.
  Clock::time_point GoOnAt(uint64_t writes, Clock::time_point now) {
    const uint64_t done = started_ ? writes - writes_ : 0;
    started_ = true;
    writes_ = writes;
    due_ = std::max(due_, now - kCatchUp) +
           std::chrono::duration_cast<Clock::duration>(per_write_ * done);
    return due_;
  }

 private:
  static constexpr std::chrono::milliseconds kCatchUp{10};

  std::chrono::duration<double> per_write_;
  bool started_ = false;
  uint64_t writes_ = 0;
  Clock::time_point due_;
};

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_WRITE_PACER_H_
