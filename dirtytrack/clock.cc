#include "dirtytrack/clock.h"

#include <time.h>

#include <cerrno>

#include "dirtytrack/check.h"

namespace postcopy {
namespace {

class MonotonicClock final : public Clock {
 public:
  int64_t NowNanos() override {
    timespec now;
    POSTCOPY_CHECK(::clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return int64_t{now.tv_sec} * kNanosPerSecond + now.tv_nsec;
  }

  void SleepFor(int64_t nanos) override {
    if (nanos <= 0) return;
    // To an absolute time, so that signals do not make the sleep longer.
    const int64_t end = NowNanos() + nanos;
    const timespec until = {.tv_sec = end / kNanosPerSecond,
                            .tv_nsec = end % kNanosPerSecond};
    while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) ==
           EINTR) {
    }
  }
};

}  // namespace

Clock* Clock::Monotonic() {
  static Clock* const clock = new MonotonicClock;
  return clock;
}

}  // namespace postcopy
