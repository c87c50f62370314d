// For how long somebody has waited.
#ifndef UFFD_STALL_TIMER_H_
#define UFFD_STALL_TIMER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "dirtytrack/check.h"

namespace postcopy {

// The length of the time in which at least one wait was going on: the union of
// the waits, not their sum. Exact for times that do not go back; one that does,
// since its caller was slow to come here, counts as the latest one seen, so
// that no moment counts twice. Not thread-safe.
class StallTimer {
 public:
  // A wait begins.
  void Begin(int64_t now_ns) {
    Advance(now_ns);
    if (waits_++ == 0) began_ns_ = last_ns_;
  }
  // One ends. REQUIRES: waits() > 0.
  void End(int64_t now_ns) {
    POSTCOPY_CHECK(waits_ > 0);
    Advance(now_ns);
    if (--waits_ == 0) ended_ns_ += last_ns_ - began_ns_;
  }

  // How many are going on.
  size_t waits() const { return waits_; }
  // Until `now_ns`, with what is going on, in nanoseconds. Never goes back.
  int64_t Total(int64_t now_ns) {
    Advance(now_ns);
    return waits_ == 0 ? ended_ns_ : ended_ns_ + last_ns_ - began_ns_;
  }

 private:
  void Advance(int64_t now_ns) { last_ns_ = std::max(last_ns_, now_ns); }

  size_t waits_ = 0;
  int64_t began_ns_ = 0;  // of the stall that is going on
  int64_t ended_ns_ = 0;  // length of those before
  int64_t last_ns_ = 0;   // the latest time seen
};

}  // namespace postcopy

#endif  // UFFD_STALL_TIMER_H_
