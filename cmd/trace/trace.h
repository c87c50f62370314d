// A trace of touches in memory.
#ifndef CMD_TRACE_TRACE_H_
#define CMD_TRACE_TRACE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dirtytrack/types.h"

namespace postcopy {

// What a trace may hold; trace.proto names the same numbers.
inline constexpr uint64_t kTracePagesMax = uint64_t{1} << 32;
inline constexpr size_t kTraceEventsMax = 4 << 20;
inline constexpr size_t kTraceThreadsMax = 1024;
inline constexpr size_t kTraceOriginBytesMax = 1024;
inline constexpr uint64_t kTraceTimeNanosMax = (uint64_t{1} << 53) - 1;

// How a page was touched.
enum class TouchKind : uint8_t { kRead, kWrite, kMinor, kWriteProtect };

// One touch; see TraceEvent in trace.proto.
struct TraceEvent {
  uint64_t time_ns = 0;
  PageIndex page;
  uint32_t thread = 0;
  TouchKind kind = TouchKind::kRead;
  // Reading, asking, answering, installing; 0 if it was no recorded fault.
  std::array<uint64_t, 4> stages_ns = {};

  friend bool operator==(const TraceEvent&, const TraceEvent&) = default;
};

// A whole trace. A value; whoever makes one keeps to the limits above.
struct Trace {
  // Of the VM.
  PageCount pages;
  // A sentence for people.
  std::string origin;
  // By ascending time.
  std::vector<TraceEvent> events;
  // Events that happened but for which there was no room.
  uint64_t dropped = 0;
  // Because the file could not be written any further: nothing of what came
  // later is in it, only counted.
  bool ended_early = false;

  friend bool operator==(const Trace&, const Trace&) = default;
};

}  // namespace postcopy

#endif  // CMD_TRACE_TRACE_H_
