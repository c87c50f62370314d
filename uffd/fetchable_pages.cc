#include "uffd/fetchable_pages.h"

#include <algorithm>

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

PageRun Between(PageIndex begin, PageIndex end) {
  return {begin, begin < end ? end - begin : PageCount(0)};
}

}  // namespace

PageRun FetchablePages::Clip(PageRun within) const {
  const PageIndex end(pages().value());
  return Between(std::min(within.first, end), std::min(within.end(), end));
}

std::optional<PageRun> FetchablePages::First(PageRun within,
                                             PageCount max) const {
  PageRun left = Clip(within);
  while (!left.count.empty()) {
    const std::optional<PageRun> run = state_.FirstMissingRun(left, max);
    if (!run.has_value()) return std::nullopt;
    const PageRun* const holder = HolderOf(requested_, run->first);
    if (holder == nullptr) return CutAt(requested_, *run);
    left = Between(holder->end(), left.end());
  }
  return std::nullopt;
}

std::optional<PageRun> FetchablePages::Last(PageRun within,
                                            PageCount max) const {
  PageRun left = Clip(within);
  while (!left.count.empty()) {
    const PageCount size = std::min(left.count, kPiece);
    left.count -= size;
    PageRun piece{left.end(), size};
    std::optional<PageRun> last;
    while (const std::optional<PageRun> run = First(piece, kPiece)) {
      last = run;
      piece = Between(run->end(), piece.end());
    }
    if (!last.has_value()) continue;
    const PageCount count = std::min(last->count, max);
    return PageRun{last->first + (last->count - count), count};
  }
  return std::nullopt;
}

}  // namespace postcopy
