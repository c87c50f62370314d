// A moment by which something must have happened.
#ifndef CMD_VMM_CHANNEL_DEADLINE_H_
#define CMD_VMM_CHANNEL_DEADLINE_H_

#include <climits>
#include <cstdint>

#include "absl/time/time.h"
#include "dirtytrack/clock.h"

namespace postcopy {

// A moment on the monotonic clock, so that setting the host's clock neither
// ends a wait early nor makes it endless. A value.
class Deadline {
 public:
  // Never passes.
  static Deadline Infinite() { return Deadline(INT64_MAX); }
  // `timeout` from now; negative: has passed; InfiniteDuration: never passes.
  static Deadline After(absl::Duration timeout) {
    const int64_t now = Clock::Monotonic()->NowNanos();
    const int64_t nanos = absl::ToInt64Nanoseconds(timeout);
    return nanos > INT64_MAX - now ? Infinite() : Deadline(now + nanos);
  }

  bool passed() const {
    return at_nanos_ != INT64_MAX &&
           Clock::Monotonic()->NowNanos() >= at_nanos_;
  }

  // What is left, as poll(2) and epoll_wait(2) take it: milliseconds, rounded
  // up, so that a wait does not end before the deadline; -1 for ever.
  int PollMillis() const {
    if (at_nanos_ == INT64_MAX) return -1;
    const int64_t left = at_nanos_ - Clock::Monotonic()->NowNanos();
    if (left <= 0) return 0;
    const int64_t millis = (left - 1) / kNanosPerMilli + 1;
    return millis > INT_MAX ? INT_MAX : static_cast<int>(millis);
  }

  friend bool operator<(Deadline a, Deadline b) {
    return a.at_nanos_ < b.at_nanos_;
  }

 private:
  explicit Deadline(int64_t at_nanos) : at_nanos_(at_nanos) {}

  int64_t at_nanos_;
};

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_DEADLINE_H_
