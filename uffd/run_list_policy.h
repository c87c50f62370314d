// Pages in an order that somebody else knows.
#ifndef UFFD_RUN_LIST_POLICY_H_
#define UFFD_RUN_LIST_POLICY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/fetchable_pages.h"
#include "uffd/pull_policy.h"

namespace postcopy {

// The pages of a list of runs, from its first run to its last: what the source
// says was dirtied most recently, or a working set that was recorded. Whoever
// fills it bounds it.
//
// It watches whether the guest's faults are pages of the list. If nearly all of
// the recent ones are not, the list tells of another guest than this one, and
// others may go first.
class RunListPolicy final : public PullPolicy {
 public:
  enum class Faults {
    // The list has no order in time.
    kIgnore,
    // The guest is likely to want next what comes in the list behind the page
    // it faults on; what was passed over comes after the end.
    kFollow,
  };

  explicit RunListPolicy(Faults faults) : faults_(faults) {}

  // Adds `runs` behind those there are. Empty ones are left out. Fewer than
  // 2^32 in all.
  void Append(absl::Span<const PageRun> runs);
  size_t size() const { return runs_.size(); }

  std::optional<PageRun> NextRun(const FetchablePages& pages,
                                 PageCount max) override;
  void NoteFault(PageRun unit) override;

  // Of the last kFaultsJudged faults, at least kFaultsElsewhere were on no page
  // of the list. Not after fewer faults.
  static constexpr int kFaultsJudged = 32;
  static constexpr int kFaultsElsewhere = 28;
  bool Doubtful() const;

 private:
  // The place in runs_ of a run with a page of `unit`; nullopt if there is
  // none. Where runs overlap, only the one that begins last is looked at.
  std::optional<size_t> Find(PageRun unit) const;

  const Faults faults_;
  std::vector<PageRun> runs_;
  // Places in runs_, by ascending first page.
  std::vector<uint32_t> by_page_;
  size_t next_ = 0;
  // A part of the list was passed over.
  bool skipped_ = false;
  // A bit per fault, the newest lowest: 1 on a page of the list.
  uint32_t hits_ = 0;
  int judged_ = 0;
};

}  // namespace postcopy

#endif  // UFFD_RUN_LIST_POLICY_H_
