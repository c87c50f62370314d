// What VMs and destinations do at a source: the log and the counters.
#ifndef CMD_PAGESERVERD_SOURCE_EVENTS_H_
#define CMD_PAGESERVERD_SOURCE_EVENTS_H_

#include <array>
#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "cmd/daemon/vm_events.h"
#include "cmd/log/limited_log.h"
#include "cmd/log/log.h"
#include "cmd/metrics/metric_families.h"
#include "pageserver/data_plane_service.h"

namespace postcopy {

// Thread-safe; no call blocks. Peers cause all of it, so of each kind of event
// at most kPeerLinesPerSecond are logged.
class SourceEvents {
 public:
  // `log` may be null, and outlives the object.
  explicit SourceEvents(Log* log);

  VmEvents& vms() { return vms_; }
  // Valid as long as the object.
  DataPlaneObserver Observer();

  void AddMetrics(MetricFamilies& families) const;

 private:
  struct LaneCounters {
    std::atomic<uint64_t> ended{0};
    std::atomic<uint64_t> failed{0};
  };

  void Session(const SessionAttempt& attempt);
  void StreamEnded(DataPlaneLane lane, const absl::Status& status);

  VmEvents vms_;
  LimitedLog sessions_;
  LimitedLog streams_;
  std::atomic<uint64_t> attempts_{0};
  std::atomic<uint64_t> refusals_{0};
  std::array<LaneCounters, 2> lanes_;  // by DataPlaneLane
};

}  // namespace postcopy

#endif  // CMD_PAGESERVERD_SOURCE_EVENTS_H_
