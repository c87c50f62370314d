#include "uffd/policy_pull_order.h"

#include <algorithm>
#include <array>
#include <utility>

#include "uffd/pull_policy.h"

namespace postcopy {
namespace {

LinearPolicy::Faults LinearFaults(PullOrderKind kind) {
  const bool ignore =
      kind == PullOrderKind::kLinear || kind == PullOrderKind::kRecentlyDirtied;
  return ignore ? LinearPolicy::Faults::kIgnore : LinearPolicy::Faults::kFollow;
}

bool UsesWorkingSet(PullOrderKind kind) {
  return kind == PullOrderKind::kAdaptive ||
         kind == PullOrderKind::kWorkingSetOnly;
}

bool UsesDirtied(PullOrderKind kind) {
  return kind == PullOrderKind::kAdaptive ||
         kind == PullOrderKind::kRecentlyDirtied;
}

bool UsesFaults(PullOrderKind kind) {
  return kind == PullOrderKind::kAdaptive ||
         kind == PullOrderKind::kAroundFaults;
}

}  // namespace

std::unique_ptr<PullOrder> NewPullOrder(PullOrderKind kind,
                                        absl::Span<const PageRun> working_set) {
  if (kind == PullOrderKind::kAfterFault) {
    return std::make_unique<AfterFaultOrder>();
  }
  return std::make_unique<PolicyPullOrder>(kind, working_set);
}

PolicyPullOrder::PolicyPullOrder(PullOrderKind kind,
                                 absl::Span<const PageRun> working_set)
    : kind_(kind), linear_(LinearFaults(kind)) {
  if (UsesWorkingSet(kind)) working_set_.Append(working_set);
}

void PolicyPullOrder::OnRecentlyDirtied(absl::Span<const PageRun> runs) {
  if (!UsesDirtied(kind_)) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t room = kRecentlyDirtiedRunsMax - dirtied_runs_;
  runs = runs.subspan(0, std::min(runs.size(), room));
  dirtied_runs_ += runs.size();
  new_dirtied_.insert(new_dirtied_.end(), runs.begin(), runs.end());
}

void PolicyPullOrder::TakeDirtied() {
  std::vector<PageRun> runs;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    runs.swap(new_dirtied_);
  }
  if (!runs.empty()) dirtied_.Append(runs);
}

void PolicyPullOrder::NoteFault(PageRun unit) {
  calm_runs_ = 0;
  working_set_.NoteFault(unit);
  dirtied_.NoteFault(unit);
  if (UsesFaults(kind_)) around_.NoteFault(unit);
  linear_.NoteFault(unit);
}

std::optional<PageRun> PolicyPullOrder::NextRun(
    const PageState& state, absl::Span<const PageRun> requested,
    PageCount max) {
  TakeDirtied();
  trail_.Read([&](PageRun unit) { NoteFault(unit); });
  if (HoldsBack(requested)) return std::nullopt;
  const std::optional<PageRun> run =
      Choose(FetchablePages(&state, requested), max);
  if (run.has_value()) calm_runs_ = std::min(calm_runs_ + 1, kCalmRuns);
  return run;
}

bool PolicyPullOrder::HoldsBack(absl::Span<const PageRun> requested) const {
  if (!UsesFaults(kind_) || calm_runs_ == kCalmRuns) return false;
  // Faults at random: no run could follow them, and none need wait for that.
  if (around_.first_window().empty()) return false;
  PageCount pages;
  for (const PageRun& run : requested) pages += run.count;
  return requested.size() >= 2 && pages >= kFollowingPages;
}

std::optional<PageRun> PolicyPullOrder::Choose(const FetchablePages& pages,
                                               PageCount max) {
  std::array<PullPolicy*, 2> first = {&working_set_, &around_};
  if (working_set_.Doubtful()) std::swap(first[0], first[1]);
  for (PullPolicy* policy : first) {
    if (auto run = policy->NextRun(pages, max); run.has_value()) return run;
  }
  if (kind_ == PullOrderKind::kWorkingSetOnly) return std::nullopt;
  if (!dirtied_.Doubtful()) {
    if (auto run = dirtied_.NextRun(pages, max); run.has_value()) return run;
  }
  return linear_.NextRun(pages, max);
}

}  // namespace postcopy
