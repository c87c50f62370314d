// Keeps installs out of the moment in which memory is given up.
#ifndef UFFD_INSTALL_GATE_H_
#define UFFD_INSTALL_GATE_H_

#include <atomic>
#include <mutex>
#include <shared_mutex>

#include "dirtytrack/types.h"

namespace postcopy {

// Pages of kPageSize installed in one pass through a gate that is needed: what
// a reader of messages may have to wait for, some 15 us.
inline constexpr PageCount kPagesPerPass{16};

// The kernel lets nobody insert pages between the moment the VMM gives memory
// up (madvise(2)) and the moment its message is read, and from then on lets
// everybody. Somebody who looked before whether a page is missing, and inserts
// it afterwards, would give the guest back what it has thrown away. So who
// installs looks and inserts in one pass through the gate, and who reads
// messages does so, and writes down what they say, while nobody is inside.
//
// For VMMs that asked for no such messages the gate is open and costs nothing.
// Thread-safe. Readers of messages do not starve: they close a turnstile.
class InstallGate {
 public:
  explicit InstallGate(bool needed) : needed_(needed) {}

  bool needed() const { return needed_; }

  using Pass = std::shared_lock<std::shared_mutex>;
  // One install. Not to be kept while waiting for anything.
  Pass Enter() {
    if (!needed_) return Pass();
    const std::lock_guard<std::mutex> turn(turnstile_);
    return Pass(inside_);
  }

  using Closed = std::unique_lock<std::shared_mutex>;
  // Nobody is inside until the result is destroyed.
  Closed Close() {
    if (!needed_) return Closed();
    const std::lock_guard<std::mutex> turn(turnstile_);
    closing_.store(true, std::memory_order_relaxed);
    Closed closed(inside_);
    closing_.store(false, std::memory_order_relaxed);
    return closed;
  }
  // True while somebody waits in Close. For tests.
  bool IsClosing() const { return closing_.load(std::memory_order_relaxed); }

 private:
  const bool needed_;
  std::atomic<bool> closing_{false};
  std::mutex turnstile_;
  std::shared_mutex inside_;
};

}  // namespace postcopy

#endif  // UFFD_INSTALL_GATE_H_
