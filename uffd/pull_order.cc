#include "uffd/pull_order.h"

#include "uffd/fetchable_pages.h"

namespace postcopy {

std::optional<PageRun> AfterFaultOrder::NextRun(
    const PageState& state, absl::Span<const PageRun> requested,
    PageCount max) {
  const uint64_t hint = hint_.exchange(kNoHint, std::memory_order_relaxed);
  if (hint != kNoHint) linear_.NoteFault({PageIndex(hint), PageCount(1)});
  return linear_.NextRun(FetchablePages(&state, requested), max);
}

}  // namespace postcopy
