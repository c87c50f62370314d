// What each thread of a replay does.
#ifndef CMD_FAULTREPLAY_TOUCH_PLAN_H_
#define CMD_FAULTREPLAY_TOUCH_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "cmd/trace/trace.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Threads of a replay: fewer than a trace may name, since each is a real one.
inline constexpr size_t kReplayThreadsMax = 256;
// RAM of a replay, of which there are two copies.
inline constexpr PageCount kReplayPagesMax{uint64_t{4} << 20};

struct Touch {
  PageIndex page;
  bool write = false;
  // What the thread does before, other than waiting for pages.
  uint64_t think_ns = 0;
};

struct TouchPlan {
  PageCount pages;
  // By thread, in the order in which they begin.
  std::vector<std::vector<Touch>> threads;
  // How many of all pages are touched at all.
  PageCount distinct;
};

// Takes a trace apart. `think`: the pauses between a thread's touches are kept,
// less what the recorded faults took; else there are none (closed loop).
// INVALID_ARGUMENT for a trace without events or beyond the limits above.
absl::StatusOr<TouchPlan> PlanTouches(const Trace& trace, bool think);

// The pages that `plan` touches: a bool for each page.
std::vector<bool> TouchedPages(const TouchPlan& plan);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_TOUCH_PLAN_H_
