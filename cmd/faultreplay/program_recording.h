// The order in which a real program touches its memory, as a guest of postcopy
// would after its switch-over.
#ifndef CMD_FAULTREPLAY_PROGRAM_RECORDING_H_
#define CMD_FAULTREPLAY_PROGRAM_RECORDING_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/trace/trace.h"
#include "dirtytrack/types.h"

namespace postcopy {

// What the trace says of where it comes from.
inline constexpr size_t kRecordedCommandBytesMax = 400;

struct RecordOptions {
  // The program, looked for in $PATH, and its arguments.
  std::vector<std::string> command;
  // It runs so long before its memory is taken away; or, unless empty, until
  // there is a file of this name.
  absl::Duration after;
  std::string after_file;
  // From then on; when it is over the program is sent SIGTERM.
  absl::Duration duration = absl::InfiniteDuration();
  // Smaller mappings keep their memory.
  ByteCount region_min;
  // See --trace_events_max of faultd.
  size_t events_max = kTraceEventsMax;
  // Path of the daemon.
  std::string faultd;
  // Its memory has been taken away, and it goes on. May be empty.
  std::function<void()> on_recording;
};

// What became of it.
struct RecordedProgram {
  Trace trace;
  // As wait(2) has it.
  int wait_status = 0;
  size_t regions = 0;
  // Of all regions, and of them those with content when it was taken away.
  PageCount pages;
  PageCount pages_saved;
};

// Runs the program; stops it and saves its private anonymous memory into a
// file; takes that memory away, and has a faultd of its own give each page back
// when it is touched, from the file, nothing ahead. Returns when the program
// has ended. It reads the bytes that it had written, only later.
//
// Needs ptrace(2) and userfaultfd, x86-64, and room in $TMPDIR (/tmp) for the
// memory. The errors of TracedProcess; NOT_FOUND if there is no memory to
// record, INTERNAL with the end of its log if faultd fails. The program is
// ended with every error. By a thread without children.
absl::StatusOr<RecordedProgram> RecordProgram(const RecordOptions& options);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_PROGRAM_RECORDING_H_
