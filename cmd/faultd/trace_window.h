// Faults as they are told, made into the events of a trace.
#ifndef CMD_FAULTD_TRACE_WINDOW_H_
#define CMD_FAULTD_TRACE_WINDOW_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "absl/types/span.h"
#include "cmd/trace/trace.h"
#include "cmd/trace/trace_check.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"
#include "uffd/fault_records.h"

namespace postcopy {

// Events that wait for the ends of their faults, which tell their times.
inline constexpr size_t kTraceWindowMax = 8192;
// For so long they wait, if there is room. What ends later has no times.
inline constexpr int64_t kTraceHoldNanos = 10 * kNanosPerSecond;

// Joins the two rows of a fault (uffd/fault_records.h). The first fault is at
// time 0. A thread beyond the first kTraceThreadsMax - 1 is not told apart: it
// is 0, as one that is not known. Not thread-safe.
class TraceWindow {
 public:
  // Of a VM with `pages`; takes `events_max` events, at most kTraceEventsMax.
  TraceWindow(PageCount pages, size_t events_max);

  // Takes one more row. REQUIRES: !Full().
  void Add(const FaultRecord& record);
  bool Full() const { return events_.size() == kTraceWindowMax; }

  // The oldest events, at most kTraceBatchEventsMax, that wait no longer: all
  // if the window is full or `all`, else those that are as old as
  // kTraceHoldNanos at `now_ns`. Valid until the next call of Add or Pop.
  absl::Span<const TraceEvent> Ready(int64_t now_ns, bool all) const;
  // The first `count` of them have been taken.
  void Pop(size_t count);

  // Faults that are no events: beyond events_max, or what no trace can say.
  uint64_t dropped() const { return dropped_; }

 private:
  void Begin(const FaultRecord& record);
  void End(const FaultRecord& record);

  const size_t events_max_;
  TraceEventChecker checker_;
  std::optional<int64_t> began_ns_;
  size_t taken_ = 0;
  uint64_t dropped_ = 0;
  std::set<uint32_t> threads_;
  std::vector<TraceEvent> events_;  // at most kTraceWindowMax, by time
};

}  // namespace postcopy

#endif  // CMD_FAULTD_TRACE_WINDOW_H_
