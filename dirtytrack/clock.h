// The seam through which this project reads time and waits.
#ifndef DIRTYTRACK_CLOCK_H_
#define DIRTYTRACK_CLOCK_H_

#include <cstdint>

namespace postcopy {

inline constexpr int64_t kNanosPerMicro = 1'000;
inline constexpr int64_t kNanosPerMilli = 1'000'000;
inline constexpr int64_t kNanosPerSecond = 1'000'000'000;

// Time that never goes back. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;

  // Nanoseconds since an arbitrary origin; not comparable between hosts.
  virtual int64_t NowNanos() = 0;

  // Blocks the calling thread for at least `nanos`; returns at once if that
  // is not positive. Signals do not cut it short.
  virtual void SleepFor(int64_t nanos) = 0;

  // CLOCK_MONOTONIC of this host. Never destroyed.
  static Clock* Monotonic();
};

}  // namespace postcopy

#endif  // DIRTYTRACK_CLOCK_H_
