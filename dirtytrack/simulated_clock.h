// A Clock for tests: no real time passes. Test-only.
#ifndef DIRTYTRACK_SIMULATED_CLOCK_H_
#define DIRTYTRACK_SIMULATED_CLOCK_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "dirtytrack/clock.h"

namespace postcopy {

// Starts at 0. Thread-safe.
class SimulatedClock final : public Clock {
 public:
  enum class Mode {
    // SleepFor moves the time on by itself and returns: for one thread, or
    // where it does not matter whose sleep moved it.
    kSleepAdvances,
    // SleepFor blocks until Advance has moved the time far enough.
    kManual,
  };

  explicit SimulatedClock(Mode mode = Mode::kSleepAdvances) : mode_(mode) {}

  int64_t NowNanos() override;
  void SleepFor(int64_t nanos) override;

  // Moves the time on and wakes those whose sleep has ended.
  // REQUIRES: nanos >= 0.
  void Advance(int64_t nanos);

  // kSleepAdvances: from now on each sleep lasts so much longer than it should,
  // as on a busy machine. REQUIRES: nanos >= 0.
  void OversleepBy(int64_t nanos);

  // kManual: blocks until at least `count` threads are in SleepFor, so that a
  // test can Advance without racing against a thread on its way there.
  void AwaitSleepers(size_t count);

 private:
  void AdvanceLocked(int64_t nanos);

  const Mode mode_;

  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t now_nanos_ = 0;
  int64_t oversleep_nanos_ = 0;
  size_t sleepers_ = 0;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_SIMULATED_CLOCK_H_
