#include "uffd/pull_order.h"

#include "uffd/fetchable_pages.h"

namespace postcopy {

std::optional<PageRun> AfterFaultOrder::NextRun(
    const PageState& state, absl::Span<const PageRun> requested,
    PageCount max) {
  const uint64_t hint = hint_.exchange(kNoHint, std::memory_order_relaxed);
  const FetchablePages pages(&state, requested);
  if (hint != kNoHint) {
    linear_.NoteFault(pages, {PageIndex(hint), PageCount(1)});
  }
  return linear_.NextRun(pages, max);
}

}  // namespace postcopy
