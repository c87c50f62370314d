// A trace that grows on disk while it is recorded.
#ifndef CMD_TRACE_TRACE_FILE_H_
#define CMD_TRACE_TRACE_FILE_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cmd/trace/trace.h"
#include "cmd/trace/trace_codec.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Writes a trace batch by batch, each over the trailer of the one before, so
// that the file is a whole trace after every call, also if the process is
// killed then. What cannot be written is left out, as if it had not been given.
// Not synchronised with the disk. Not thread-safe.
class TraceFile {
 public:
  // A trace without events. Takes `fd`, an empty regular file open for writing.
  // RESOURCE_EXHAUSTED if there is no room (ENOSPC, EDQUOT, EFBIG), else
  // INTERNAL. REQUIRES: CheckTraceHeader says OK.
  static absl::StatusOr<TraceFile> Begin(UniqueFd fd, PageCount pages,
                                         const std::string& origin);

  TraceFile(TraceFile&&) = default;
  TraceFile& operator=(TraceFile&&) = default;

  // Adds events, at most kTraceBatchEventsMax, and says that `dropped` had no
  // room so far. Without events only that is new. The errors of Begin.
  // REQUIRES: TraceEventChecker takes the events.
  absl::Status Append(absl::Span<const TraceEvent> events, uint64_t dropped);

 private:
  explicit TraceFile(UniqueFd fd) : fd_(std::move(fd)) {}

  // Puts `bytes` at end_, and nothing behind them.
  absl::Status Write(const std::string& bytes);

  UniqueFd fd_;
  // Of what is in the file.
  TraceEncoder encoder_;
  off_t end_ = 0;  // where the trailer begins
  std::string trailer_;
};

}  // namespace postcopy

#endif  // CMD_TRACE_TRACE_FILE_H_
