// Traces as text, to be read by other programs and to be written by hand.
#ifndef CMD_TRACE_TRACE_TEXT_H_
#define CMD_TRACE_TRACE_TEXT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/trace/trace.h"

namespace postcopy {

// "read", "write", "minor", "write-protect".
absl::string_view TouchKindName(TouchKind kind);

// Comma-separated values. The first line has "# pages=N dropped=N ORIGIN", the
// second the names of the columns, each further one an event.
std::string TraceToCsv(const Trace& trace);

// A TraceRecord on each line in protobuf's JSON, but for 64-bit numbers, which
// are written as numbers: a header, batches of one event, a trailer.
std::string TraceToJson(const Trace& trace);

// Read back what the functions above write. INVALID_ARGUMENT, with the number
// of the line, for anything else.
absl::StatusOr<Trace> TraceFromCsv(absl::string_view text);
absl::StatusOr<Trace> TraceFromJson(absl::string_view text);

}  // namespace postcopy

#endif  // CMD_TRACE_TRACE_TEXT_H_
