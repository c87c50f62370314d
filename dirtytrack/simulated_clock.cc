#include "dirtytrack/simulated_clock.h"

#include "dirtytrack/check.h"

namespace postcopy {

int64_t SimulatedClock::NowNanos() {
  std::lock_guard lock(mutex_);
  return now_nanos_;
}

void SimulatedClock::SleepFor(int64_t nanos) {
  if (nanos <= 0) return;
  std::unique_lock lock(mutex_);
  if (mode_ == Mode::kSleepAdvances) {
    return AdvanceLocked(nanos + oversleep_nanos_);
  }
  const int64_t end = now_nanos_ + nanos;
  ++sleepers_;
  changed_.notify_all();
  changed_.wait(lock, [&] { return now_nanos_ >= end; });
  --sleepers_;
}

void SimulatedClock::Advance(int64_t nanos) {
  POSTCOPY_CHECK(nanos >= 0);
  std::lock_guard lock(mutex_);
  AdvanceLocked(nanos);
}

void SimulatedClock::AdvanceLocked(int64_t nanos) {
  now_nanos_ += nanos;
  changed_.notify_all();
}

void SimulatedClock::OversleepBy(int64_t nanos) {
  POSTCOPY_CHECK(nanos >= 0);
  std::lock_guard lock(mutex_);
  oversleep_nanos_ = nanos;
}

void SimulatedClock::AwaitSleepers(size_t count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return sleepers_ >= count; });
}

}  // namespace postcopy
