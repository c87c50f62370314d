#include "pageserver/rate_limiter.h"

#include <algorithm>

namespace postcopy {
namespace {

int64_t NanosFor(uint64_t bytes, uint64_t per_second) {
  return static_cast<int64_t>(static_cast<__uint128_t>(bytes) *
                              kNanosPerSecond / per_second);
}

}  // namespace

RateLimiter::RateLimiter(Clock* clock, ByteCount per_second)
    : clock_(clock),
      per_second_(per_second.value()),
      link_free_ns_(clock->NowNanos()) {}

void RateLimiter::Pace(ByteCount bytes) {
  uint64_t per_second = per_second_.load(std::memory_order_relaxed);
  int64_t now = clock_->NowNanos();
  if (per_second == 0) {
    link_free_ns_ = now;
    return;
  }
  // An idle link saves up at most one burst.
  const int64_t burst_ns = NanosFor(kBurst.value(), per_second);
  link_free_ns_ = std::max(link_free_ns_, now - burst_ns) +
                  NanosFor(bytes.value(), per_second);
  while (link_free_ns_ > now) {
    clock_->SleepFor(std::min(link_free_ns_ - now, kLongestSleepNanos));
    now = clock_->NowNanos();
    per_second = ChangeRate(per_second, now);
  }
}

uint64_t RateLimiter::ChangeRate(uint64_t old_per_second, int64_t now) {
  const uint64_t per_second = per_second_.load(std::memory_order_relaxed);
  if (per_second == old_per_second || link_free_ns_ <= now) return per_second;
  // What has not left yet leaves at the new rate.
  const auto left = static_cast<__uint128_t>(link_free_ns_ - now);
  link_free_ns_ =
      per_second == 0
          ? now
          : now + static_cast<int64_t>(left * old_per_second / per_second);
  return per_second;
}

}  // namespace postcopy
