#include "cmd/log/limited_log.h"

#include <string>
#include <utility>

namespace postcopy {

void LimitedLog::Write(LogRecord record) {
  if (log_ == nullptr) return;
  const std::lock_guard lock(mutex_);
  const int64_t now_ns = clock_->NowNanos();
  if (now_ns - second_began_ns_ >= kNanosPerSecond) {
    second_began_ns_ = now_ns;
    in_second_ = 0;
  }
  if (in_second_ >= per_second_) {
    ++suppressed_;
    return;
  }
  ++in_second_;
  if (suppressed_ > 0) {
    record.fields.emplace_back("SUPPRESSED",
                               std::to_string(std::exchange(suppressed_, 0)));
  }
  log_->Write(std::move(record));
}

}  // namespace postcopy
