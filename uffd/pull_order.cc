#include "uffd/pull_order.h"

namespace postcopy {
namespace {

// The run in `requested` that holds `page`; nullptr if none.
const PageRun* HolderOf(absl::Span<const PageRun> requested, PageIndex page) {
  for (const PageRun& run : requested) {
    if (run.Contains(page)) return &run;
  }
  return nullptr;
}

// `run` cut where the first of `requested` begins in it.
PageRun CutAt(absl::Span<const PageRun> requested, PageRun run) {
  for (const PageRun& other : requested) {
    if (run.Contains(other.first)) run.count = other.first - run.first;
  }
  return run;
}

// The first missing run at or after `from` that is not requested.
std::optional<PageRun> NextFrom(const PageState& state,
                                absl::Span<const PageRun> requested,
                                PageCount max, PageIndex from) {
  std::optional<PageRun> run = state.NextMissingRun(from, max);
  while (run.has_value()) {
    const PageRun* holder = HolderOf(requested, run->first);
    if (holder == nullptr) return CutAt(requested, *run);
    run = state.NextMissingRun(holder->end(), max);
  }
  return std::nullopt;
}

}  // namespace

std::optional<PageRun> AfterFaultOrder::NextRun(
    const PageState& state, absl::Span<const PageRun> requested,
    PageCount max) {
  const uint64_t hint = hint_.exchange(kNoHint, std::memory_order_relaxed);
  if (hint != kNoHint) cursor_ = PageIndex(hint) + PageCount(1);
  std::optional<PageRun> run = NextFrom(state, requested, max, cursor_);
  if (!run.has_value()) {
    run = NextFrom(state, requested, max, PageIndex(0));
  }
  if (run.has_value()) cursor_ = run->end();
  return run;
}

}  // namespace postcopy
