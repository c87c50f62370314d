// VMs that come, go and are refused at a VMM socket: the log and the counters.
#ifndef CMD_DAEMON_VM_EVENTS_H_
#define CMD_DAEMON_VM_EVENTS_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "cmd/log/limited_log.h"
#include "cmd/log/log.h"
#include "cmd/metrics/metric_families.h"
#include "dirtytrack/clock.h"

namespace postcopy {

// Thread-safe; no call blocks. VMMs can come and go as often as they like, so
// of each kind of event at most kPeerLinesPerSecond are logged.
class VmEvents {
 public:
  // `role` is the metrics' label. `log` may be null, and outlives the object.
  VmEvents(std::string role, Log* log)
      : role_(std::move(role)),
        comings_(log, kPeerLinesPerSecond, Clock::Monotonic()),
        refusals_(log, kPeerLinesPerSecond, Clock::Monotonic()) {}

  void Attached(const std::string& vm_name);
  void Detached(const std::string& vm_name);
  void Refused(const absl::Status& why);

  void AddMetrics(MetricFamilies& families) const;

 private:
  const std::string role_;
  LimitedLog comings_;
  LimitedLog refusals_;
  std::atomic<uint64_t> attached_{0};
  std::atomic<uint64_t> detached_{0};
  std::atomic<uint64_t> refused_{0};
};

}  // namespace postcopy

#endif  // CMD_DAEMON_VM_EVENTS_H_
