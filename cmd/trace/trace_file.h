// A trace that grows on disk while it is recorded.
#ifndef CMD_TRACE_TRACE_FILE_H_
#define CMD_TRACE_TRACE_FILE_H_

#include <sys/types.h>

#include <cstddef>
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

  // Says that the trace ends before its VM does, because Append failed, and
  // that `dropped` had no room so far. Returns how many of the events in the
  // file, those of the last Append, had to make room for that and are counted
  // as dropped besides. The errors of Begin: then the file says what it said in
  // the call before, or, if there was none, has no end, as who reads it is
  // told. No Append after that; this may be called again.
  absl::StatusOr<size_t> EndEarly(uint64_t dropped);

 private:
  // What is in the file, but for its trailer.
  struct Content {
    TraceEncoder encoder;
    off_t end = 0;  // where the trailer begins
  };

  explicit TraceFile(UniqueFd fd) : fd_(std::move(fd)) {}

  // Puts `bytes` behind the content, and nothing behind them.
  absl::Status Write(const std::string& bytes);
  absl::Status WriteEarlyTrailer(uint64_t dropped);

  UniqueFd fd_;
  Content content_;
  std::string trailer_;
  bool ended_early_ = false;  // as trailer_ says
  // Before the last Append that added events, and how many; 0: there is none,
  // or they have been taken back.
  Content before_;
  size_t last_events_ = 0;
};

}  // namespace postcopy

#endif  // CMD_TRACE_TRACE_FILE_H_
