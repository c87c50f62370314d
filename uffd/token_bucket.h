// A limit in bytes per second.
#ifndef UFFD_TOKEN_BUCKET_H_
#define UFFD_TOKEN_BUCKET_H_

#include <cstdint>

#include "dirtytrack/types.h"

namespace postcopy {

// In every interval of t seconds, at most rate * t + burst bytes pass.
// Not thread-safe. Times are of one Clock and do not go back.
class TokenBucket {
 public:
  // Full. rate 0: no limit. REQUIRES: burst > 0.
  TokenBucket(uint64_t bytes_per_second, ByteCount burst, int64_t now_ns);

  // What had accrued at the old rate stays. 0: no limit.
  void SetRate(uint64_t bytes_per_second, int64_t now_ns);

  // 0 if `bytes` may pass now, and takes them; else how many nanoseconds to
  // wait before asking again, at least 1. REQUIRES: bytes <= burst.
  int64_t Take(ByteCount bytes, int64_t now_ns);

  // Gives back what was taken and not used.
  void Refund(ByteCount bytes);

 private:
  void Accrue(int64_t now_ns);

  const double burst_;
  double rate_;  // bytes per second; 0: no limit
  double tokens_;
  int64_t last_ns_;
};

}  // namespace postcopy

#endif  // UFFD_TOKEN_BUCKET_H_
