// What names one migration in the logs of both daemons.
#ifndef DIRTYTRACK_TRACE_ID_H_
#define DIRTYTRACK_TRACE_ID_H_

#include <string>

#include "absl/strings/string_view.h"

namespace postcopy {

// True for a trace-id of W3C Trace Context: 32 digits of 0-9a-f, not all 0.
bool IsTraceId(absl::string_view text);

// A random one.
std::string NewTraceId();

}  // namespace postcopy

#endif  // DIRTYTRACK_TRACE_ID_H_
