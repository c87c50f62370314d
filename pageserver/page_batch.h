// Pages on their way out: runs with their bytes, read from guest RAM.
#ifndef PAGESERVER_PAGE_BATCH_H_
#define PAGESERVER_PAGE_BATCH_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/run_compression.h"
#include "dirtytrack/types.h"
#include "pageserver/guest_memory.h"

namespace postcopy {

// Pages with data in one batch: 256 KiB, small enough that a lane that must
// yield yields within a fraction of a millisecond.
inline constexpr PageCount kBatchPagesMax{64};
static_assert(BytesIn(kBatchPagesMax) == kCompressedRunBytesMax);
// Runs in one batch.
inline constexpr size_t kBatchRunsMax = 256;

// Runs of pages and their content. Reused from batch to batch, so that its
// memory is allocated once. Not thread-safe.
class PageBatch {
 public:
  struct Run {
    PageRun pages;
    // pages.count * kPageSize bytes, or a frame of them if `compressed`; empty
    // if all pages are zero.
    std::string data;
    // RunChecksum(pages, data), of the data before it was compressed.
    uint32_t crc32c = 0;
    bool compressed = false;
  };

  bool empty() const { return used_ == 0; }
  // No further page with data, or no further run, fits.
  bool full() const {
    return used_ >= kBatchRunsMax || data_pages_ >= kBatchPagesMax;
  }
  // Pages that fit whatever is in them: in the worst case each is a run.
  PageCount room() const {
    return std::min(kBatchPagesMax - data_pages_,
                    PageCount(kBatchRunsMax - used_));
  }
  PageCount data_pages() const { return data_pages_; }
  PageCount zero_pages() const { return zero_pages_; }
  // What the data is on the wire, without framing; also after the strings have
  // been taken.
  ByteCount sent_bytes() const { return sent_bytes_; }
  absl::Span<Run> runs() { return absl::MakeSpan(runs_).subspan(0, used_); }
  absl::Span<const Run> runs() const {
    return absl::MakeConstSpan(runs_).subspan(0, used_);
  }

  // Forgets the runs, keeps their memory.
  void Clear();

  // Adds zero pages without reading them. REQUIRES: !full().
  void AddZero(PageRun pages);

  // Reads `pages` and adds them as runs of data and of zeros. On failure the
  // batch is as it was. REQUIRES: 0 < pages.count <= room().
  absl::Status AddFrom(const GuestMemory& memory, PageRun pages);

  // Compresses the runs that become smaller. The last call before the batch is
  // sent, and once at most.
  void Compress(RunCompressor& compressor);

 private:
  Run& NextRun(PageRun pages);
  void AddData(PageRun pages, absl::Span<const uint8_t> bytes);
  // Counts a run that has its data.
  void FinishData(Run& run);
  // Adds `pages`, whose bytes are in buffer_, as runs of data and of zeros.
  void AddBuffered(PageRun pages);

  std::vector<Run> runs_;
  size_t used_ = 0;
  PageCount data_pages_;
  PageCount zero_pages_;
  ByteCount sent_bytes_;
  std::string buffer_;
};

// Adds the pages that an urgent request names, in the order named; those that
// lie one behind the other are read at once. INVALID_ARGUMENT for more than
// kBatchPagesMax; else as GuestMemory::Read, and then `batch` is unspecified.
// REQUIRES: batch.empty().
absl::Status ReadAsked(const GuestMemory& memory,
                       absl::Span<const PageIndex> pages, PageBatch& batch);

// Whether a FetchRange can be answered: OUT_OF_RANGE outside of `layout` or for
// no pages, INVALID_ARGUMENT for more than kBatchPagesMax.
absl::Status CheckFetch(const RamLayout& layout, PageRun run);

}  // namespace postcopy

#endif  // PAGESERVER_PAGE_BATCH_H_
