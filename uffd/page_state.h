// Which pages of a VM the destination has.
//
// Two bitmaps (dirtytrack/page_bitmap.h) in one memfd:
//
//   received  zero
//      0       0    missing: the current content is not here
//      1       0    its content is in the RAM file
//      1       1    it is all zeros, and perhaps still a hole in the RAM file:
//                   who touches it waits until it is given zeros
//      0       1    missing too: a step between two of the above
//
// The memfd is two bits per page plus one page; who keeps it keeps the state.
// Layout, version 1, little-endian, each part beginning on a page boundary:
//
//   header (PageStateHeader) | received | zero
//
// Example, 100,000 pages: a bitmap has 1,563 words = 12,504 bytes, so received
// is at 4,096, zero at 20,480, and the file ends at 36,864.
#ifndef UFFD_PAGE_STATE_H_
#define UFFD_PAGE_STATE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// First bytes of the memfd.
struct PageStateHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;  // sizeof(PageStateHeader)
  uint64_t page_size;
  uint64_t page_count;
};
static_assert(sizeof(PageStateHeader) == 32);
inline constexpr uint64_t kPageStateMagic = 0x6574617473676770;  // "pggstate"
inline constexpr uint32_t kPageStateVersion = 1;

// What taking pages in did to the state; also after an error.
struct ReceiveResult {
  absl::Status status;
  // Pages that were missing and are received.
  PageCount received;
  // Pages that were received and are missing.
  PageCount removed;
};

// Thread-safe and lock-free. Memory ordering: whoever sees a page received (or
// missing() == 0) sees all that happened before the MarkReceived that made it
// so. Bytes first, then the mark.
class PageState {
 public:
  // All pages missing. INVALID_ARGUMENT for no pages or more than kMaxRamBytes
  // of them; else the errors of CreateMemfd and SharedMapping::Map.
  static absl::StatusOr<std::unique_ptr<PageState>> Create(PageCount pages);

  // The state in `fd`, which Create of this process or an earlier one wrote.
  // Duplicates it. INVALID_ARGUMENT if it is not such a memfd, sealed against
  // change of size; FAILED_PRECONDITION if it is of another version or VM
  // (another number of pages).
  static absl::StatusOr<std::unique_ptr<PageState>> Open(int fd,
                                                         PageCount pages);

  PageState(const PageState&) = delete;
  PageState& operator=(const PageState&) = delete;

  // The memfd. Owned by this object.
  int fd() const { return fd_.get(); }
  PageCount pages() const { return received_.pages(); }

  // Pages not received; pages received and zero. As of some moment.
  PageCount missing() const {
    return PageCount(missing_.load(std::memory_order_acquire));
  }
  PageCount zero() const {
    return PageCount(zero_pages_.load(std::memory_order_relaxed));
  }

  // REQUIRES for all below: the pages exist.

  bool IsReceived(PageIndex page) const { return received_.Test(page); }
  // True if the page was last marked with `is_zero`. Means nothing for a page
  // that is not received.
  bool IsZero(PageIndex page) const { return zero_.Test(page); }

  // Makes `run` received. Returns how many of its pages were missing; of
  // several concurrent callers each page counts for one.
  PageCount MarkReceived(PageRun run, bool is_zero);

  // Makes `run` missing. Returns how many of its pages were received.
  // REQUIRES: no concurrent call for the same pages.
  PageCount MarkMissing(PageRun run);

  // The first run of missing (received) pages at or after `from`, of at most
  // `max` pages; nullopt if there is none.
  std::optional<PageRun> NextMissingRun(
      PageIndex from, PageCount max = PageCount(UINT64_MAX)) const {
    return received_.NextClearRun(from, max);
  }
  // As NextMissingRun, of `within` alone: looks at nothing behind its end.
  std::optional<PageRun> FirstMissingRun(PageRun within, PageCount max) const {
    return received_.First(PageCount(within.end().value()))
        .NextClearRun(within.first, max);
  }
  std::optional<PageRun> NextReceivedRun(
      PageIndex from, PageCount max = PageCount(UINT64_MAX)) const {
    return received_.NextSetRun(from, max);
  }
  // The first run at or after `from` of at most `max` pages that are received,
  // and not as zeros; nullopt if there is none.
  std::optional<PageRun> NextContentRun(PageIndex from, PageCount max) const;
  // The first run at or after `from` of pages that are received and set in
  // `among`, which is as large as the state; nullopt if there is none. Looks at
  // 64 pages at a time where there are none.
  std::optional<PageRun> NextReceivedRun(PageBitmapView among,
                                         PageIndex from) const;

 private:
  // Counts every page as missing: of a new state, reading the bits to find
  // that out would allocate all of them.
  PageState(UniqueFd fd, SharedMapping mapping, PageCount pages);
  void CountBits();

  const UniqueFd fd_;
  const SharedMapping mapping_;
  const PageBitmapView received_;
  const PageBitmapView zero_;
  std::atomic<uint64_t> missing_;
  std::atomic<uint64_t> zero_pages_{0};
};

}  // namespace postcopy

#endif  // UFFD_PAGE_STATE_H_
