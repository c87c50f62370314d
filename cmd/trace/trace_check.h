// Whether what came from outside can be a trace.
#ifndef CMD_TRACE_TRACE_CHECK_H_
#define CMD_TRACE_TRACE_CHECK_H_

#include <cstdint>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "cmd/trace/trace.h"

namespace postcopy {

// INVALID_ARGUMENT, and why, unless a trace may have these.
absl::Status CheckTraceHeader(uint64_t pages, const std::string& origin);

// Looks at the events of one trace, in their order. Not thread-safe.
class TraceEventChecker {
 public:
  explicit TraceEventChecker(PageCount pages) : pages_(pages) {}

  // INVALID_ARGUMENT, and why, if `event` cannot be the next.
  absl::Status Check(const TraceEvent& event);

 private:
  const PageCount pages_;
  uint64_t events_ = 0;
  uint64_t last_ns_ = 0;
  std::set<uint32_t> threads_;
};

// Both, for a trace that is whole.
absl::Status CheckTrace(const Trace& trace);

}  // namespace postcopy

#endif  // CMD_TRACE_TRACE_CHECK_H_
