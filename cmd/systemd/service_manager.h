// What a daemon and the service manager that started it say to each other.
#ifndef CMD_SYSTEMD_SERVICE_MANAGER_H_
#define CMD_SYSTEMD_SERVICE_MANAGER_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Names that socket units give (FileDescriptorName=).
inline constexpr char kVmmSocketName[] = "vmm";
inline constexpr char kFirecrackerSocketName[] = "firecracker";

// Messages to the service manager by sd_notify(3); each does nothing if there
// is none (NOTIFY_SOCKET is not set). They do not block for long and never
// fail: nothing would follow from it. Thread-safe.
class ServiceManager {
 public:
  // Reads the environment. WATCHDOG_USEC counts if it is meant for this
  // process.
  ServiceManager();

  // Whether anybody listens.
  bool there() const { return there_; }
  // How long it may hear nothing from Alive(); infinite: for ever.
  absl::Duration watchdog() const { return watchdog_; }

  void Ready() const { Tell("READY=1"); }
  // The configuration is read anew; Ready() follows.
  void Reloading() const { Tell("RELOADING=1"); }
  void Stopping() const { Tell("STOPPING=1"); }
  // One line that `systemctl status` shows.
  void Status(absl::string_view line) const;
  // Feeds the watchdog.
  void Alive() const { Tell("WATCHDOG=1"); }
  // Start or stop will take up to `more` from now.
  void NeedsTime(absl::Duration more) const;

 private:
  void Tell(const std::string& state) const;

  const bool there_;
  const absl::Duration watchdog_;
};

// The sockets that the service manager passed to this process, by name; once,
// before others are opened. The environment forgets them. INVALID_ARGUMENT
// names one whose name is not known or there twice; then all are closed.
absl::StatusOr<std::map<std::string, UniqueFd>> TakePassedSockets();

// Takes the one of `name` out of `sockets`; -1 if it is not there.
int TakeSocket(std::map<std::string, UniqueFd>& sockets,
               const std::string& name);

// A sentence on those that are left, which nobody serves and VMMs would wait
// at; empty: none is.
std::string DescribeUnused(const std::map<std::string, UniqueFd>& sockets);

}  // namespace postcopy

#endif  // CMD_SYSTEMD_SERVICE_MANAGER_H_
