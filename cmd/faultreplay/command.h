// The commands of faultreplay: each is one file with one function of this
// header, and one row of the table in main.cc.
#ifndef CMD_FAULTREPLAY_COMMAND_H_
#define CMD_FAULTREPLAY_COMMAND_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/backend_spec.h"
#include "cmd/faultreplay/experiment.h"
#include "cmd/trace/trace.h"
#include "dirtytrack/types.h"

namespace postcopy {

// What the flags say; the defaults are those of flags.cc.
struct ReplayFlags {
  std::string pattern;
  ByteCount ram;
  uint64_t touches = 0;
  uint32_t threads = 0;
  uint64_t seed = 0;
  absl::Duration think_time;
  uint32_t write_percent = 0;
  std::string backend;
  uint32_t repeats = 0;
  std::string think;
  std::string placement;
  std::string output;
  std::string json;
  std::string html;
  std::string hdr;
  std::string report;
  absl::Duration timeout;
  bool await_whole = false;
  int64_t lose_page = -1;
  std::string memory;
  uint64_t pages = 0;
  int ready_fd = -1;
  std::string out;
  absl::Duration after;
  std::string after_file;
  absl::Duration duration;
  ByteCount region_min;
  uint64_t events_max = 0;
  ReplayPrograms programs;
};

struct ReplayContext {
  ReplayFlags flags;
  // Behind the command.
  std::vector<std::string> arguments;
  // All of it, for reports.
  std::string command_line;
  std::ostream* out;  // Data.
  std::ostream* err;  // Messages and progress.
};

// INVALID_ARGUMENT is wrong usage.
absl::Status RunSynth(const ReplayContext& context);
absl::Status RunInfo(const ReplayContext& context);
absl::Status RunConvert(const ReplayContext& context);
absl::Status RunRecord(const ReplayContext& context);
absl::Status RunRun(const ReplayContext& context);
absl::Status RunCompare(const ReplayContext& context);
absl::Status RunBench(const ReplayContext& context);
absl::Status RunEchoServer(const ReplayContext& context);

// --- What commands share ----------------------------------------------------

// The trace that the flags of synth describe.
absl::StatusOr<Trace> TraceFromFlags(const ReplayFlags& flags);

// A file by its name's end: .csv, .json, else a trace.
absl::StatusOr<Trace> ReadAnyTrace(const std::string& path);
absl::Status WriteAnyTrace(const std::string& path, const Trace& trace);

// All of an experiment that flags say. Binds this process to CPUs.
absl::StatusOr<ExperimentOptions> ExperimentFromFlags(
    const ReplayContext& context);

// Where this program's own build has the daemon `name`, unless `path` says it.
// NOT_FOUND if it is not there.
absl::Status FindDaemon(const char* name, std::string* path);

// The path of a trace that comes with this program: beside a build's own, or
// installed. NOT_FOUND if it is at neither place.
absl::StatusOr<std::string> FindRecordedTrace(const std::string& name);

// Replaces a file's content. The message names it.
absl::Status WriteTextFile(const std::string& path, const std::string& text);

// Writes the files that --json, --html and --hdr name, and what --output says
// to context.out.
absl::Status PublishReport(const ReplayContext& context,
                           const ReplayReport& report,
                           absl::Span<const BudgetLine> budget);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_COMMAND_H_
