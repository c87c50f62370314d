#include "cmd/faultreplay/experiment.h"

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cmd/faultreplay/qemu/qemu_replay.h"
#include "cmd/faultreplay/replayer.h"
#include "cmd/faultreplay/touch_plan.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

constexpr int64_t kNoiseNanos = 50 * kNanosPerMilli;

// Whatever it is, the usage was right.
absl::Status Annotate(const BackendSpec& spec, const absl::Status& status) {
  const absl::StatusCode code = absl::IsInvalidArgument(status)
                                    ? absl::StatusCode::kInternal
                                    : status.code();
  return absl::Status(code, absl::StrCat(spec.name, ": ", status.message()));
}

std::string DescribeTrace(const Trace& trace, const TouchPlan& plan) {
  return absl::StrCat(trace.origin, " (", trace.events.size(), " touches of ",
                      plan.distinct.value(), " pages, ", plan.threads.size(),
                      " threads, RAM of ", ToString(BytesIn(trace.pages)), ")");
}

absl::StatusOr<RunResult> RunOnce(const BackendSpec& spec,
                                  const TouchPlan& plan,
                                  const SourceMemory& source,
                                  const ExperimentOptions& options) {
  if (spec.kind == BackendKind::kQemu) {
    return RunQemuReplay(plan, source,
                         {.program = options.programs.qemu,
                          .preempt = spec.preempt,
                          .bandwidth = spec.bandwidth,
                          .delay_ns = spec.delay_ns / 2,
                          .timeout = options.timeout,
                          .cpus = options.placed.touching});
  }
  const std::unique_ptr<Backend> backend =
      NewBackend(spec, plan, options.programs, &source);
  return RunReplay(plan,
                   {.timeout = options.timeout,
                    .cpus = options.placed.touching,
                    .await_whole = options.await_whole},
                   backend.get());
}

// Whether all backends can replay `plan` at all.
absl::Status CheckPlan(const TouchPlan& plan,
                       const ExperimentOptions& options) {
  for (const BackendSpec& spec : options.backends) {
    if (spec.kind == BackendKind::kQemu) return CheckQemuPlan(plan);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ReplayReport> RunExperiment(const Trace& trace,
                                           const ExperimentOptions& options) {
  absl::StatusOr<TouchPlan> plan = PlanTouches(trace, options.think);
  if (!plan.ok()) return plan.status();
  absl::Status possible = CheckPlan(*plan, options);
  if (!possible.ok()) return possible;
  absl::StatusOr<SourceMemory> source =
      SourceMemory::Create(plan->pages, options.lost_page);
  if (!source.ok()) return source.status();
  ReplayReport report = {.title = options.title,
                         .command = options.command,
                         .machine = DescribeMachine(),
                         .placement = options.placed.description,
                         .trace = DescribeTrace(trace, *plan)};
  for (const BackendSpec& spec : options.backends) {
    report.backends.push_back({.name = spec.name, .runs = {}});
  }
  report.noise.push_back(MeasureNoise(kNoiseNanos));
  for (uint32_t repeat = 0; repeat < options.repeats; ++repeat) {
    for (size_t i = 0; i < options.backends.size(); ++i) {
      const BackendSpec& spec = options.backends[i];
      options.progress(absl::StrCat(options.title, ": repeat ", repeat + 1,
                                    " of ", options.repeats, ", ", spec.name));
      absl::StatusOr<RunResult> run = RunOnce(spec, *plan, *source, options);
      if (!run.ok()) return Annotate(spec, run.status());
      if (auto judged = JudgeRun(*run); !judged.ok()) {
        return Annotate(spec, judged);
      }
      report.backends[i].runs.push_back(*std::move(run));
    }
    report.noise.push_back(MeasureNoise(kNoiseNanos));
  }
  return report;
}

}  // namespace postcopy
