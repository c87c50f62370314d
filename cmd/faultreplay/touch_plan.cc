#include "cmd/faultreplay/touch_plan.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

// From the fault to its end, as recorded.
uint64_t FaultNanos(const TraceEvent& event) {
  return std::accumulate(event.stages_ns.begin(), event.stages_ns.end(),
                         uint64_t{0});
}

bool IsWrite(TouchKind kind) {
  return kind == TouchKind::kWrite || kind == TouchKind::kWriteProtect;
}

struct ThreadSoFar {
  size_t index = 0;
  uint64_t free_ns = 0;  // when its last touch was over
};

}  // namespace

absl::StatusOr<TouchPlan> PlanTouches(const Trace& trace, bool think) {
  if (trace.events.empty()) {
    return absl::InvalidArgumentError("the trace has no events to replay");
  }
  if (trace.pages.value() > kReplayPagesMax.value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the trace is of a VM with ", trace.pages.value(),
                     " pages; at most ", kReplayPagesMax.value(),
                     " are replayed, since they take memory twice"));
  }
  TouchPlan plan = {.pages = trace.pages};
  std::map<uint32_t, ThreadSoFar> threads;
  for (const TraceEvent& event : trace.events) {
    const auto [at, is_new] = threads.try_emplace(event.thread);
    ThreadSoFar& thread = at->second;
    if (is_new) {
      thread.index = plan.threads.size();
      plan.threads.emplace_back();
    }
    Touch touch = {.page = event.page, .write = IsWrite(event.kind)};
    if (think && event.time_ns > thread.free_ns) {
      touch.think_ns = event.time_ns - thread.free_ns;
    }
    plan.threads[thread.index].push_back(touch);
    thread.free_ns = event.time_ns + FaultNanos(event);
  }
  if (plan.threads.size() > kReplayThreadsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the trace has ", plan.threads.size(),
                     " threads; at most ", kReplayThreadsMax, " are replayed"));
  }
  const std::vector<bool> touched = TouchedPages(plan);
  plan.distinct = PageCount(
      static_cast<uint64_t>(std::count(touched.begin(), touched.end(), true)));
  return plan;
}

std::vector<bool> TouchedPages(const TouchPlan& plan) {
  std::vector<bool> touched(plan.pages.value());
  for (const std::vector<Touch>& thread : plan.threads) {
    for (const Touch& touch : thread) touched[touch.page.value()] = true;
  }
  return touched;
}

}  // namespace postcopy
