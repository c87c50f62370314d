// Monotonic time in Abseil's type, for time-outs and elapsed times.
#ifndef CMD_POSTCOPYCTL_UPTIME_H_
#define CMD_POSTCOPYCTL_UPTIME_H_

#include "absl/time/time.h"
#include "dirtytrack/clock.h"

namespace postcopy {

// Time since an arbitrary moment, the same for all threads.
inline absl::Duration Uptime() {
  return absl::Nanoseconds(Clock::Monotonic()->NowNanos());
}

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_UPTIME_H_
