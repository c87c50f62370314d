// Puts a huge page together from the small ones that travel.
#ifndef UFFD_LARGE_PAGE_H_
#define UFFD_LARGE_PAGE_H_

#include <bitset>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "uffd/page_source.h"

namespace postcopy {

// Pages that travel in one huge page.
inline constexpr PageCount kLargePages = PagesIn(kHugePageSize);

// The pages that both have; none: its count is 0.
PageRun CommonPages(PageRun a, PageRun b);

// Bytes of `part` in the data of `whole`; none if these are zeros.
// REQUIRES: `part` lies in it, and HasItsData(whole).
absl::Span<const uint8_t> DataOf(PageRun part, const ReceivedRun& whole);

// False if there is data of another length than its pages have.
bool HasItsData(const ReceivedRun& run);

// The content of one huge page, as far as it has come. One thread at a time.
// Keeps its memory, so that nothing is allocated once it is warm.
class LargePage {
 public:
  // Forgets what has come; from now on the page is `pages`, kLargePages of
  // them, as its source counts them.
  void Begin(PageRun pages);
  PageRun pages() const { return pages_; }

  // Takes `data` (empty: zeros) of `part`. Pages may come more than once; the
  // last content counts. REQUIRES: `part` lies in pages(); data.size() fits.
  void Add(PageRun part, absl::Span<const uint8_t> data);
  bool complete() const { return here_.all(); }
  // All of it; empty if it is all zeros. Valid until the next Begin.
  // REQUIRES: complete().
  absl::Span<const uint8_t> data() const;

 private:
  PageRun pages_;
  std::bitset<kLargePages.value()> here_;
  bool has_data_ = false;
  std::vector<uint8_t> bytes_;
};

}  // namespace postcopy

#endif  // UFFD_LARGE_PAGE_H_
