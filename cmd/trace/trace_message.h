// Events and headers of traces as messages of the contract.
#ifndef CMD_TRACE_TRACE_MESSAGE_H_
#define CMD_TRACE_TRACE_MESSAGE_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/trace/trace.h"
#include "postcopy/v1/trace.pb.h"

namespace postcopy {

void EncodeTraceEvent(const TraceEvent& event, v1::TraceEvent& encoded);

// INVALID_ARGUMENT for an unknown kind; TraceEventChecker looks at the rest.
absl::StatusOr<TraceEvent> DecodeTraceEvent(const v1::TraceEvent& encoded);

// Fills in pages and origin. FAILED_PRECONDITION for another version or page
// size, INVALID_ARGUMENT for what no trace may have.
absl::Status DecodeTraceHeader(const v1::TraceHeader& header, Trace* trace);

}  // namespace postcopy

#endif  // CMD_TRACE_TRACE_MESSAGE_H_
