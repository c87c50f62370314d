// Shows the guest what was precopied before it touches it.
#ifndef UFFD_MAP_AHEAD_H_
#define UFFD_MAP_AHEAD_H_

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"
#include "uffd/destination_ram.h"
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
//
// Where pages wait in a file of this process to be copied, the thread does not
// end before none waits any more: memory is not to be unregistered sooner.
class MapAhead {
 public:
  // All outlive the object.
  MapAhead(const DestinationRam* ram, const PageState* state,
           Installer* installer, Clock* clock)
      : ram_(*ram), state_(*state), installer_(*installer), clock_(*clock) {}
  // Stop().
  ~MapAhead() { Stop(); }

  // Starts the thread, which does nothing yet. RESOURCE_EXHAUSTED if there is
  // none: then nothing is wrong but where pages wait.
  absl::Status Start();
  // Lets it begin.
  void Go();
  // Ends it and waits for it. Idempotent.
  void Stop();

  // Waits until nothing waits any more; false if the thread has ended without
  // that, or soon after `give_up`, if there is one, has become true. REQUIRES:
  // Go, if there is anything.
  bool AwaitNothingStaged(const std::atomic<bool>* give_up = nullptr);

  // Pages that were put into sight, or that needed nothing. Any thread.
  PageCount done() const {
    return PageCount(done_.load(std::memory_order_relaxed));
  }

 private:
  void Run();
  // Over all pages once; false if the VMM's process is gone.
  bool RevealAll();
  bool AwaitGo();

  const DestinationRam& ram_;
  const PageState& state_;
  Installer& installer_;
  Clock& clock_;
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> done_{0};
  std::thread thread_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool going_ = false;
  bool ended_ = false;
};

}  // namespace postcopy

#endif  // UFFD_MAP_AHEAD_H_
