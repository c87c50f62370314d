// Keeps the bulk lane below its bandwidth limit.
#ifndef PAGESERVER_RATE_LIMITER_H_
#define PAGESERVER_RATE_LIMITER_H_

#include <atomic>
#include <cstdint>

#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"

namespace postcopy {

// A token bucket that never holds more than kBurst. One thread calls Pace; any
// thread may change the limit.
class RateLimiter {
 public:
  // What may be sent at once after a pause: a few batches, so that the limit
  // holds over every stretch longer than burst / limit.
  static constexpr ByteCount kBurst{1 << 20};

  // How late a change of the limit may be noticed by who waits for it.
  static constexpr int64_t kLongestSleepNanos = 10 * kNanosPerMilli;

  // `clock` outlives this. A limit of 0 bytes per second means none.
  RateLimiter(Clock* clock, ByteCount per_second);

  void SetLimit(ByteCount per_second) {
    per_second_.store(per_second.value(), std::memory_order_relaxed);
  }
  ByteCount limit() const {
    return ByteCount(per_second_.load(std::memory_order_relaxed));
  }

  // Accounts for `bytes` that have been sent, then waits until the next may
  // be. So one call never waits longer than bytes / limit. A limit that changes
  // while it waits holds for the rest of the wait.
  void Pace(ByteCount bytes);

 private:
  // The limit now, which what has not left yet is put to.
  uint64_t ChangeRate(uint64_t old_per_second, int64_t now);

  Clock* const clock_;
  std::atomic<uint64_t> per_second_;
  // When the bytes sent so far would have left a link of exactly the limit.
  int64_t link_free_ns_;
};

}  // namespace postcopy

#endif  // PAGESERVER_RATE_LIMITER_H_
