// One replay of a trace against one backend.
#ifndef CMD_FAULTREPLAY_REPLAYER_H_
#define CMD_FAULTREPLAY_REPLAYER_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/backend.h"
#include "cmd/faultreplay/run_result.h"
#include "cmd/faultreplay/touch_plan.h"

namespace postcopy {

struct ReplayOptions {
  // For the touches, and again for the look at every page behind them. Then
  // what still waits is given up, and the run has failed.
  absl::Duration timeout = absl::Minutes(2);
  // CPUs to which the touching threads are bound in turn; empty: to none.
  std::vector<int> cpus;
  // Wait until all pages have come by themselves before every page is looked
  // at, which else fetches what is missing.
  bool await_whole = false;
};

// Starts `backend`, has the threads of `plan` touch their pages, looks at every
// page of RAM, and finishes. Which pages were wrong is in the result; an error
// is what kept it from measuring: DEADLINE_EXCEEDED, with how many pages never
// came, or what the backend says.
absl::StatusOr<RunResult> RunReplay(const TouchPlan& plan,
                                    const ReplayOptions& options,
                                    Backend* backend);

// DATA_LOSS, with numbers, if a page was wrong or was not looked at.
absl::Status JudgeRun(const RunResult& result);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_REPLAYER_H_
