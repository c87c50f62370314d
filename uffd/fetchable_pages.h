// Which pages the background may ask for now.
#ifndef UFFD_FETCHABLE_PAGES_H_
#define UFFD_FETCHABLE_PAGES_H_

#include <optional>

#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/page_state.h"

namespace postcopy {

// The pages that are missing and not requested: one look at a PageState, which
// changes meanwhile. A value; both arguments outlive it.
class FetchablePages {
 public:
  FetchablePages(const PageState* state, absl::Span<const PageRun> requested)
      : state_(*state), requested_(requested) {}

  PageCount pages() const { return state_.pages(); }

  // The first run of fetchable pages in `within`, of 1 to `max` pages; nullopt
  // if there is none. `within` may reach past the last page, or be empty.
  std::optional<PageRun> First(PageRun within, PageCount max) const;

  // The same from the other end: the last run of fetchable pages in `within`,
  // and of it the last pages, at most `max`. Looks at kPiece pages at a time,
  // and a run is taken to begin where such a piece begins.
  std::optional<PageRun> Last(PageRun within, PageCount max) const;
  static constexpr PageCount kPiece{64};

 private:
  PageRun Clip(PageRun within) const;

  const PageState& state_;
  const absl::Span<const PageRun> requested_;
};

}  // namespace postcopy

#endif  // UFFD_FETCHABLE_PAGES_H_
