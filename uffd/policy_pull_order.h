// The order made of policies, and how it is chosen.
#ifndef UFFD_POLICY_PULL_ORDER_H_
#define UFFD_POLICY_PULL_ORDER_H_

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/around_faults_policy.h"
#include "uffd/fault_trail.h"
#include "uffd/fetchable_pages.h"
#include "uffd/linear_policy.h"
#include "uffd/page_state.h"
#include "uffd/pull_order.h"
#include "uffd/run_list_policy.h"

namespace postcopy {

// Runs given without a fault meanwhile, until an order that follows faults asks
// for as much ahead as others do: 2 MiB of full ones.
inline constexpr uint32_t kCalmRuns = 8;
// Until then no more is asked for if this many pages are in flight, in two runs
// or more: one is read at the source while the other is on the wire.
inline constexpr PageCount kFollowingPages{65};

// How the background goes through the missing pages. All but kWorkingSetOnly
// bring every page in the end. Unless said otherwise an order knows no working
// set.
enum class PullOrderKind {
  // Everything that is known: a working set, around the most recent faults, the
  // recently dirtied, behind the last fault; each as long as faults speak for
  // it.
  kAdaptive,
  // By ascending address, whatever the guest does.
  kLinear,
  // Upwards from behind the most recent fault.
  kAfterFault,
  // Around the most recent faults, then upwards from behind the last.
  kAroundFaults,
  // What the source says was written last, then by ascending address.
  kRecentlyDirtied,
  // A working set and nothing else.
  kWorkingSetOnly,
};

// The order of `kind`. `working_set`: runs as they were touched, for kAdaptive
// and kWorkingSetOnly. REQUIRES: its pages exist in the VM.
std::unique_ptr<PullOrder> NewPullOrder(
    PullOrderKind kind, absl::Span<const PageRun> working_set = {});

// Policies, of which each comes when those before it have nothing to say.
//
//   working set, around faults, recently dirtied, linear
//
// Two changes of that order follow from what the faults show. A working set of
// which the recent faults are no part lets "around faults" go first. A list of
// recently dirtied pages of which they are no part is left out until they are
// again; its pages come with the linear ones.
//
// An order that follows faults asks for less ahead as long as they come: what
// is in flight already was chosen without them.
class PolicyPullOrder final : public PullOrder {
 public:
  // As NewPullOrder. REQUIRES: not kAfterFault, which is AfterFaultOrder.
  PolicyPullOrder(PullOrderKind kind, absl::Span<const PageRun> working_set);

  std::optional<PageRun> NextRun(const PageState& state,
                                 absl::Span<const PageRun> requested,
                                 PageCount max) override;
  void OnFault(PageRun unit) override { trail_.Add(unit); }
  void OnRecentlyDirtied(absl::Span<const PageRun> runs) override;

 private:
  void TakeDirtied();
  void NoteFault(PageRun unit);
  // Whether enough is in flight for a guest that faults.
  bool HoldsBack(absl::Span<const PageRun> requested) const;
  std::optional<PageRun> Choose(const FetchablePages& pages, PageCount max);

  const PullOrderKind kind_;
  FaultTrail trail_;

  // Of the background thread.
  uint32_t calm_runs_ = kCalmRuns;  // given since the last fault, at most that
  RunListPolicy working_set_{RunListPolicy::Faults::kFollow};
  AroundFaultsPolicy around_;
  RunListPolicy dirtied_{RunListPolicy::Faults::kIgnore};
  LinearPolicy linear_;

  // Between the receiver of the bulk lane and the background thread.
  std::mutex mutex_;
  std::vector<PageRun> new_dirtied_;  // guarded by mutex_
  size_t dirtied_runs_ = 0;           // guarded by mutex_: ever taken
};

}  // namespace postcopy

#endif  // UFFD_POLICY_PULL_ORDER_H_
