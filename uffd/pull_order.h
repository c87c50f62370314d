// In which order the background fetches missing pages.
#ifndef UFFD_PULL_ORDER_H_
#define UFFD_PULL_ORDER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/linear_policy.h"
#include "uffd/page_state.h"

namespace postcopy {

// Runs of pages that an order keeps of what the source says was written last:
// 1 MiB of them.
inline constexpr size_t kRecentlyDirtiedRunsMax = 64 << 10;

// An order, used by up to three threads at once: the background thread calls
// NextRun, the fault loop OnFault, the receiver of the bulk lane
// OnRecentlyDirtied. What an order is told only decides what comes first:
// every page of the VM comes, unless the order says of itself that it leaves
// pages to be touched.
class PullOrder {
 public:
  virtual ~PullOrder() = default;

  // The next run to ask for: 1 to `max` pages, all missing when looked at, none
  // in `requested`. nullopt if there is no such page now, or nothing is to be
  // asked for before one of `requested`, of which there are then some, is
  // answered.
  virtual std::optional<PageRun> NextRun(const PageState& state,
                                         absl::Span<const PageRun> requested,
                                         PageCount max) = 0;

  // The guest has just missed `unit`: one page, or all of a huge one. Wait-free
  // and without allocation.
  virtual void OnFault(PageRun unit) = 0;

  // More of the pages that the source says were written last, the most recent
  // first. What is beyond kRecentlyDirtiedRunsMax in all is not kept. REQUIRES:
  // the pages exist.
  virtual void OnRecentlyDirtied(absl::Span<const PageRun> /*runs*/) {}
};

// Goes on behind the most recent fault, upwards, and from the start again when
// it has come to the end: a guest that reads memory in order finds the pages
// there before it comes.
class AfterFaultOrder final : public PullOrder {
 public:
  std::optional<PageRun> NextRun(const PageState& state,
                                 absl::Span<const PageRun> requested,
                                 PageCount max) override;
  void OnFault(PageRun unit) override {
    // Relaxed: a hint, and nothing else is read because of it.
    hint_.store(unit.end().value() - 1, std::memory_order_relaxed);
  }

 private:
  static constexpr uint64_t kNoHint = UINT64_MAX;

  LinearPolicy linear_{LinearPolicy::Faults::kFollow};
  std::atomic<uint64_t> hint_{kNoHint};
};

}  // namespace postcopy

#endif  // UFFD_PULL_ORDER_H_
