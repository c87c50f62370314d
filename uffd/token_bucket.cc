#include "uffd/token_bucket.h"

#include <algorithm>
#include <cmath>

#include "dirtytrack/check.h"
#include "dirtytrack/clock.h"

namespace postcopy {

TokenBucket::TokenBucket(uint64_t bytes_per_second, ByteCount burst,
                         int64_t now_ns)
    : burst_(static_cast<double>(burst.value())),
      rate_(static_cast<double>(bytes_per_second)),
      tokens_(burst_),
      last_ns_(now_ns) {
  POSTCOPY_CHECK(burst_ > 0);
}

void TokenBucket::SetRate(uint64_t bytes_per_second, int64_t now_ns) {
  Accrue(now_ns);
  rate_ = static_cast<double>(bytes_per_second);
}

int64_t TokenBucket::Take(ByteCount bytes, int64_t now_ns) {
  const double wanted = static_cast<double>(bytes.value());
  POSTCOPY_CHECK(wanted <= burst_);
  Accrue(now_ns);
  if (rate_ == 0) return 0;
  if (tokens_ >= wanted) {
    tokens_ -= wanted;
    return 0;
  }
  // Rounded up: a nanosecond early would be a turn for nothing.
  const double wait_ns =
      std::ceil((wanted - tokens_) / rate_ * kNanosPerSecond);
  constexpr double kLongest = 1e18;  // 31 years, and fits
  return std::max<int64_t>(1,
                           static_cast<int64_t>(std::min(wait_ns, kLongest)));
}

void TokenBucket::Refund(ByteCount bytes) {
  tokens_ = std::min(burst_, tokens_ + static_cast<double>(bytes.value()));
}

void TokenBucket::Accrue(int64_t now_ns) {
  const double seconds =
      static_cast<double>(now_ns - last_ns_) / kNanosPerSecond;
  tokens_ = std::min(burst_, tokens_ + seconds * rate_);
  last_ns_ = now_ns;
}

}  // namespace postcopy
