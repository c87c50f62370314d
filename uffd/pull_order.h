// In which order the background fetches missing pages.
#ifndef UFFD_PULL_ORDER_H_
#define UFFD_PULL_ORDER_H_

#include <atomic>
#include <cstdint>
#include <optional>

#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/page_state.h"

namespace postcopy {

// A policy. NextRun is called by one thread, OnFault by another, concurrently.
class PullOrder {
 public:
  virtual ~PullOrder() = default;

  // The next run to ask for: 1 to `max` pages, all missing when looked at, none
  // in `requested`. nullopt if there is no such page now.
  virtual std::optional<PageRun> NextRun(const PageState& state,
                                         absl::Span<const PageRun> requested,
                                         PageCount max) = 0;

  // The guest has just missed `page`. Wait-free: called by the fault loop.
  virtual void OnFault(PageIndex page) = 0;
};

// Goes on behind the most recent fault, upwards, and from the start again when
// it has come to the end: a guest that reads memory in order finds the pages
// there before it comes.
class AfterFaultOrder final : public PullOrder {
 public:
  std::optional<PageRun> NextRun(const PageState& state,
                                 absl::Span<const PageRun> requested,
                                 PageCount max) override;
  void OnFault(PageIndex page) override {
    // Relaxed: a hint, and nothing else is read because of it.
    hint_.store(page.value(), std::memory_order_relaxed);
  }

 private:
  static constexpr uint64_t kNoHint = UINT64_MAX;

  PageIndex cursor_;
  std::atomic<uint64_t> hint_{kNoHint};
};

}  // namespace postcopy

#endif  // UFFD_PULL_ORDER_H_
