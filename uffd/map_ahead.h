// Shows the guest what was precopied before it touches it.
#ifndef UFFD_MAP_AHEAD_H_
#define UFFD_MAP_AHEAD_H_

#include <atomic>
#include <thread>

#include "absl/status/status.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"
#include "uffd/installer.h"
#include "uffd/page_state.h"

namespace postcopy {

// Pages put into sight by one system call, where nothing else limits it.
inline constexpr PageCount kMapAheadPages{512};

// How long to let those go who keep the kernel from it.
inline constexpr int64_t kMapAheadPauseNanos = kNanosPerMilli;

// In memory that is registered for MINOR the first touch of a page that is in
// its file is a fault for the fault loop, some microseconds; put into sight in
// runs it costs a tenth of one. So one thread goes over the pages that are
// received when the guest comes, once, upwards, and ends. What comes later is
// put into sight by who installs it.
class MapAhead {
 public:
  // All outlive the object.
  MapAhead(const PageState* state, Installer* installer, Clock* clock)
      : state_(*state), installer_(*installer), clock_(*clock) {}
  // Stop().
  ~MapAhead() { Stop(); }

  // Starts the thread. Call once. RESOURCE_EXHAUSTED if there is none: then
  // nothing is done, and nothing is wrong.
  absl::Status Start();
  // Ends it and waits for it. Idempotent.
  void Stop();

  // Pages that were put into sight, or that needed nothing. Any thread.
  PageCount done() const {
    return PageCount(done_.load(std::memory_order_relaxed));
  }

 private:
  void Run();

  const PageState& state_;
  Installer& installer_;
  Clock& clock_;
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> done_{0};
  std::thread thread_;
};

}  // namespace postcopy

#endif  // UFFD_MAP_AHEAD_H_
