// Several backends under the same trace, in turn.
#ifndef CMD_FAULTREPLAY_EXPERIMENT_H_
#define CMD_FAULTREPLAY_EXPERIMENT_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/backend_spec.h"
#include "cmd/faultreplay/machine.h"
#include "cmd/faultreplay/report.h"
#include "cmd/trace/trace.h"

namespace postcopy {

inline constexpr uint32_t kRepeatsMax = 100;

struct ExperimentOptions {
  std::string title;
  std::string command;
  std::vector<BackendSpec> backends;
  // Of each backend; backend by backend in each repeat.
  uint32_t repeats = 3;
  // Keep the trace's pauses between touches.
  bool think = false;
  PlacedCpus placed;
  absl::Duration timeout = absl::Minutes(2);
  // See ReplayOptions.
  bool await_whole = false;
  std::optional<PageIndex> lost_page;
  ReplayPrograms programs;
  // Told before each run.
  std::function<void(const std::string&)> progress = [](const std::string&) {};
};

// The first run that cannot be made, or that shows a wrong page (DATA_LOSS), is
// the error.
absl::StatusOr<ReplayReport> RunExperiment(const Trace& trace,
                                           const ExperimentOptions& options);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_EXPERIMENT_H_
