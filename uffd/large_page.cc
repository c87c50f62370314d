#include "uffd/large_page.h"

#include <algorithm>
#include <cstring>

#include "dirtytrack/check.h"

namespace postcopy {

PageRun CommonPages(PageRun a, PageRun b) {
  const PageIndex first = std::max(a.first, b.first);
  const PageIndex end = std::min(a.end(), b.end());
  return {first, first < end ? end - first : PageCount(0)};
}

absl::Span<const uint8_t> DataOf(PageRun part, const ReceivedRun& whole) {
  if (whole.data.empty()) return {};
  return whole.data.subspan(BytesIn(part.first - whole.pages.first).value(),
                            BytesIn(part.count).value());
}

bool HasItsData(const ReceivedRun& run) {
  // Compared as pages: a count that a peer has sent may overflow in bytes.
  return run.data.empty() ||
         (run.data.size() % kPageSize == 0 &&
          run.data.size() / kPageSize == run.pages.count.value());
}

void LargePage::Begin(PageRun pages) {
  POSTCOPY_CHECK(pages.count == kLargePages);
  pages_ = pages;
  here_.reset();
  has_data_ = false;
  bytes_.resize(kHugePageSize.value());
}

void LargePage::Add(PageRun part, absl::Span<const uint8_t> data) {
  const uint64_t at = (part.first - pages_.first).value();
  uint8_t* const to = bytes_.data() + at * kPageSize;
  if (data.empty()) {
    std::memset(to, 0, BytesIn(part.count).value());
  } else {
    std::memcpy(to, data.data(), data.size());
    has_data_ = true;
  }
  for (uint64_t i = 0; i < part.count.value(); ++i) here_.set(at + i);
}

absl::Span<const uint8_t> LargePage::data() const {
  POSTCOPY_CHECK(complete());
  return has_data_ ? absl::MakeConstSpan(bytes_) : absl::Span<const uint8_t>();
}

}  // namespace postcopy
