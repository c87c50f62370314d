// The machine that a replay runs on: which CPUs it takes, and how quiet they
// are.
#ifndef CMD_FAULTREPLAY_MACHINE_H_
#define CMD_FAULTREPLAY_MACHINE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace postcopy {

// Where everything of a replay runs.
enum class Placement {
  kOne,     // all of it on one CPU
  kFree,    // wherever the scheduler likes
  kSpread,  // touching threads bound to the CPUs in turn, the rest free
};

struct PlacedCpus {
  // "all of it on CPU 0".
  std::string description;
  // For ReplayOptions::cpus.
  std::vector<int> touching;
};

// "one", "free", "spread". INVALID_ARGUMENT for anything else.
absl::StatusOr<Placement> ParsePlacement(absl::string_view name);

// Binds the calling thread, and with it all threads and processes that it
// starts from then on. INTERNAL if the kernel refuses.
absl::StatusOr<PlacedCpus> Place(Placement placement);

// How long this machine keeps a thread from running that only looks at the
// clock.
struct Noise {
  // Longest gap, and the share of time lost in gaps above kGapNanos, of 1.
  int64_t longest_gap_ns = 0;
  double lost = 0;
};
inline constexpr int64_t kGapNanos = 5'000;
Noise MeasureNoise(int64_t duration_ns);

// "Linux 6.12.0, 2 CPUs, Intel(R) ..., 23 GiB".
std::string DescribeMachine();

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_MACHINE_H_
