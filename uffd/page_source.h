// The seam behind which a destination's missing pages come from: gRPC, a
// snapshot file, another lane.
#ifndef UFFD_PAGE_SOURCE_H_
#define UFFD_PAGE_SOURCE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Pages in one RequestUrgent, and in one answer to it; huge ones where a region
// is made of them.
inline constexpr size_t kMaxUrgentPages = 64;
// Pages in one RequestBulk: 256 KiB, what a faulted page may have to wait for
// where both lanes share a wire.
inline constexpr PageCount kMaxBulkPages{64};

// Consecutive pages as a source delivered them.
struct ReceivedRun {
  PageRun pages;
  // pages.count * kPageSize bytes at any alignment; or empty: the pages are
  // all zeros. Valid only during the call that passes it.
  absl::Span<const uint8_t> data;
};

// Asks for pages of one VM. Its content must not change while it is asked: two
// answers for one page are equal.
//
// Neither call blocks on the network: it hands the request over and returns.
// The answer goes to the DestinationVm that asked, once per request, normally
// from a thread of the source; from within the call is allowed too.
//
// Errors mean that the request was not handed over. Nothing is retried by
// itself: whoever owns the connection calls DestinationVm::OnSourceLost and,
// with a working source, OnSourceBack, which asks again.
class PageSource {
 public:
  virtual ~PageSource() = default;

  // Asks for faulted pages, 1 to kMaxUrgentPages of them, distinct; the answer
  // goes to OnUrgentPages. A huge page is named by its first page, and answered
  // whole. Called by the fault loop's thread or, in OnSourceBack, by the caller
  // of that; never by two at a time.
  virtual absl::Status RequestUrgent(absl::Span<const PageIndex> pages) = 0;

  // Asks for 1 to kMaxBulkPages consecutive pages of one region, or for one
  // huge page; the answer goes to OnBulkPages. Called by the background thread
  // only, concurrently with RequestUrgent.
  virtual absl::Status RequestBulk(PageRun run) = 0;
};

}  // namespace postcopy

#endif  // UFFD_PAGE_SOURCE_H_
