#include "pageserver/page_batch.h"

#include "absl/strings/str_cat.h"
#include "dirtytrack/page_checksum.h"

namespace postcopy {
namespace {

// What is kept for the next batch. A string that once held a whole batch stays
// that large, and in time every one of the runs may have.
constexpr size_t kRetainedBytesMax = 2 << 20;

absl::Span<const uint8_t> PageAt(absl::Span<const uint8_t> bytes, uint64_t i) {
  return bytes.subspan(i * kPageSize, kPageSize);
}

// How many pages from the first on are zero if it is, or not if it is not.
PageCount AlikePages(absl::Span<const uint8_t> bytes) {
  const uint64_t count = bytes.size() / kPageSize;
  const bool zero = IsZero(PageAt(bytes, 0));
  uint64_t alike = 1;
  while (alike < count && IsZero(PageAt(bytes, alike)) == zero) ++alike;
  return PageCount(alike);
}

}  // namespace

void PageBatch::Clear() {
  size_t kept = 0;
  for (const Run& run : runs_) kept += run.data.capacity();
  if (kept > kRetainedBytesMax) runs_.clear();
  used_ = 0;
  data_pages_ = PageCount(0);
  zero_pages_ = PageCount(0);
  sent_bytes_ = ByteCount(0);
}

PageBatch::Run& PageBatch::NextRun(PageRun pages) {
  if (used_ == runs_.size()) runs_.emplace_back();
  Run& run = runs_[used_++];
  run.pages = pages;
  run.compressed = false;
  return run;
}

void PageBatch::AddZero(PageRun pages) {
  POSTCOPY_CHECK(!full());
  zero_pages_ += pages.count;
  // Zero pages behind zero pages make the run longer.
  if (used_ > 0 && runs_[used_ - 1].data.empty() &&
      runs_[used_ - 1].pages.end() == pages.first) {
    Run& last = runs_[used_ - 1];
    last.pages.count += pages.count;
    last.crc32c = RunChecksum(last.pages, {});
    return;
  }
  Run& run = NextRun(pages);
  run.data.clear();
  run.crc32c = RunChecksum(pages, {});
}

void PageBatch::AddData(PageRun pages, absl::Span<const uint8_t> bytes) {
  Run& run = NextRun(pages);
  run.data.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  FinishData(run);
}

void PageBatch::FinishData(Run& run) {
  run.crc32c = RunChecksum(
      run.pages,
      {reinterpret_cast<const uint8_t*>(run.data.data()), run.data.size()});
  data_pages_ += run.pages.count;
  sent_bytes_ += BytesIn(run.pages.count);
}

void PageBatch::Compress(RunCompressor& compressor) {
  sent_bytes_ = ByteCount(0);
  for (Run& run : runs()) {
    run.compressed = compressor.Compress(run.data);
    sent_bytes_ += ByteCount(run.data.size());
  }
}

absl::Status PageBatch::AddFrom(const GuestMemory& memory, PageRun pages) {
  POSTCOPY_CHECK(!pages.count.empty() && pages.count <= room());
  // Into the run that it will be unless there are zeros in it, which is seldom:
  // the bytes are copied once less.
  Run& run = NextRun(pages);
  run.data.resize(BytesIn(pages.count).value());
  const absl::Span<uint8_t> bytes(reinterpret_cast<uint8_t*>(run.data.data()),
                                  run.data.size());
  if (absl::Status s = memory.Read(pages, bytes); !s.ok()) {
    --used_;
    return s;
  }
  if (AlikePages(bytes) == pages.count && !IsZero(PageAt(bytes, 0))) {
    FinishData(run);
    return absl::OkStatus();
  }
  buffer_.swap(run.data);
  --used_;
  AddBuffered(pages);
  return absl::OkStatus();
}

void PageBatch::AddBuffered(PageRun pages) {
  absl::Span<const uint8_t> bytes(
      reinterpret_cast<const uint8_t*>(buffer_.data()),
      BytesIn(pages.count).value());
  while (!pages.count.empty()) {
    const PageRun run{pages.first, AlikePages(bytes)};
    const size_t size = BytesIn(run.count).value();
    if (IsZero(PageAt(bytes, 0))) {
      AddZero(run);
    } else {
      AddData(run, bytes.subspan(0, size));
    }
    bytes.remove_prefix(size);
    pages = {run.end(), pages.count - run.count};
  }
}

absl::Status ReadAsked(const GuestMemory& memory,
                       absl::Span<const PageIndex> pages, PageBatch& batch) {
  if (pages.size() > kBatchPagesMax.value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a request may name ", kBatchPagesMax.value(),
                     " pages, not ", pages.size()));
  }
  size_t begin = 0;
  while (begin < pages.size()) {
    PageRun run{pages[begin], PageCount(1)};
    while (begin + run.count.value() < pages.size() &&
           pages[begin + run.count.value()] == run.end()) {
      run.count += PageCount(1);
    }
    if (absl::Status s = batch.AddFrom(memory, run); !s.ok()) return s;
    begin += run.count.value();
  }
  return absl::OkStatus();
}

absl::Status CheckFetch(const RamLayout& layout, PageRun run) {
  if (absl::Status s = layout.Check(run.first, run.count); !s.ok()) return s;
  if (run.count > kBatchPagesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a FetchRange may span ", kBatchPagesMax.value(),
                     " pages, not ", run.count.value()));
  }
  return absl::OkStatus();
}

}  // namespace postcopy
