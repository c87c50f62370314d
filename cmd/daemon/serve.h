// The life of a daemon between ready and its end: signals, the service
// manager, the watchdog.
#ifndef CMD_DAEMON_SERVE_H_
#define CMD_DAEMON_SERVE_H_

#include <cstddef>
#include <functional>
#include <string>

#include "absl/time/time.h"

namespace postcopy {

// What a daemon is doing.
struct DaemonLoad {
  // VMs attached.
  size_t vms = 0;
  // Migrations that have not ended.
  size_t migrations = 0;
  // Guests that would wait for ever for a page if the daemon ended now.
  size_t needing = 0;
  // Of the VMs, such whose source has just failed to give pages.
  size_t failing = 0;

  DaemonLoad& operator+=(const DaemonLoad& other) {
    vms += other.vms;
    migrations += other.migrations;
    needing += other.needing;
    failing += other.failing;
    return *this;
  }
};

// "3 VMs, 2 migrations, 1 guest needs this daemon for missing pages"; and
// "; pages of 1 VM cannot be had, see the log"
std::string Describe(const DaemonLoad& load);

struct ServeHooks {
  // Gets a sentence on each thing that an operator should know of.
  std::function<void(const std::string&)> log;
  std::function<DaemonLoad()> load;
  // Takes nothing new from now on, and gives up what can be given up: called
  // once, when the daemon is told to end, by a thread of its own, as it may
  // have to wait. What needs the daemon when it returns needs it until it is
  // done.
  std::function<void()> stop_taking;
  // Whether every thread that guests depend on has come round since the last
  // call.
  std::function<bool()> shows_life;
  // How long an end waits for who needs this daemon; asked anew each time.
  std::function<absl::Duration()> drain_timeout;
  // Reads the configuration again; a sentence on what came of it.
  std::function<std::string()> reload;
};

// When a daemon that is told to end ends.
class Drain {
 public:
  // SIGTERM or SIGINT came. True if it is the first.
  bool Ask(absl::Time now);

  bool asked() const { return asks_ > 0; }

  // Whether it is time: nobody needs the daemon, or somebody has asked twice,
  // or `timeout` has passed since the first time.
  bool IsOver(const DaemonLoad& load, absl::Duration timeout,
              absl::Time now) const;

  // Why not, and what to do.
  std::string WhyNot(const DaemonLoad& load, absl::Duration timeout,
                     absl::Time now) const;

 private:
  int asks_ = 0;
  absl::Time since_;
};

// Says that the daemon is ready and returns when it has been told to end by
// SIGTERM or SIGINT and may. Meanwhile SIGHUP reloads; the service manager, if
// there is one, gets status lines, and signs of life as long as `shows_life`.
// By main's thread, with BlockEndSignals called before any other was started.
void Serve(const ServeHooks& hooks);

}  // namespace postcopy

#endif  // CMD_DAEMON_SERVE_H_
