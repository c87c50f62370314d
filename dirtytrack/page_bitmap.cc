#include "dirtytrack/page_bitmap.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

constexpr uint64_t kPerWord = PageBitmapView::kPagesPerWord;
constexpr uint64_t kAllBits = ~uint64_t{0};

uint64_t CountBits(uint64_t bits) {
  return static_cast<uint64_t>(std::popcount(bits));
}

}  // namespace

PageCount PageBitmapView::SetRun(PageRun run) const {
  POSTCOPY_CHECK(run.end().value() <= pages_.value());
  uint64_t set = 0;
  ForEachWord(
      run, [&](size_t i, uint64_t mask) { set += CountBits(OrWord(i, mask)); });
  return PageCount(set);
}

PageCount PageBitmapView::ClearRun(PageRun run) const {
  POSTCOPY_CHECK(run.end().value() <= pages_.value());
  uint64_t cleared = 0;
  ForEachWord(run, [&](size_t i, uint64_t mask) {
    if ((LoadWord(i) & mask) == 0) return;
    cleared +=
        CountBits(words_[i].fetch_and(~mask, std::memory_order_acq_rel) & mask);
  });
  return PageCount(cleared);
}

void PageBitmapView::ClearRunWhere(PageBitmapView other, PageRun run) const {
  POSTCOPY_CHECK(run.end().value() <= pages_.value());
  POSTCOPY_CHECK(run.end().value() <= other.pages().value());
  ForEachWord(run, [&](size_t i, uint64_t mask) {
    const uint64_t bits = LoadWord(i) & mask;
    if (bits == 0) return;
    const uint64_t cleared = bits & other.LoadWord(i);
    if (cleared == 0) return;
    words_[i].fetch_and(~cleared, std::memory_order_acq_rel);
  });
}

PageCount PageBitmapView::CountRun(PageRun run) const {
  POSTCOPY_CHECK(run.end().value() <= pages_.value());
  uint64_t count = 0;
  ForEachWord(run, [&](size_t i, uint64_t mask) {
    count += CountBits(LoadWord(i) & mask);
  });
  return PageCount(count);
}

PageCount PageBitmapView::Count() const {
  return CountRun({PageIndex(0), pages_});
}

bool PageBitmapView::Any() const {
  return FindNext(0, pages_.value(), 0) < pages_.value();
}

uint64_t PageBitmapView::FindNext(uint64_t from, uint64_t end,
                                  uint64_t flip) const {
  if (from >= end) return end;
  size_t i = from / kPerWord;
  const size_t last = (end - 1) / kPerWord;
  uint64_t mask = kAllBits << (from % kPerWord);
  for (; i <= last; ++i, mask = kAllBits) {
    const uint64_t word =
        (words_[i].load(std::memory_order_acquire) ^ flip) & mask;
    if (word == 0) continue;
    // In the last word the bit may lie beyond `end`.
    return std::min<uint64_t>(i * kPerWord + std::countr_zero(word), end);
  }
  return end;
}

std::optional<PageRun> PageBitmapView::NextRun(PageIndex from, PageCount max,
                                               uint64_t flip) const {
  POSTCOPY_CHECK(!max.empty());
  const uint64_t pages = pages_.value();
  const uint64_t first = FindNext(from.value(), pages, flip);
  if (first >= pages) return std::nullopt;
  const uint64_t limit = first + std::min(max.value(), pages - first);
  // Begins behind `first`: were that bit flipped between the two looks, the
  // run would be empty.
  const uint64_t end = FindNext(first + 1, limit, ~flip);
  return PageRun{PageIndex(first), PageCount(end - first)};
}

std::optional<PageRun> PageBitmapView::NextSetRun(PageIndex from,
                                                  PageCount max) const {
  return NextRun(from, max, 0);
}

std::optional<PageRun> PageBitmapView::NextClearRun(PageIndex from,
                                                    PageCount max) const {
  return NextRun(from, max, kAllBits);
}

PageCount PageBitmapView::OrAt(PageIndex at, uint64_t bits) const {
  const size_t i = at.value() / kPerWord;
  const uint64_t shift = at.value() % kPerWord;
  uint64_t set = CountBits(OrWord(i, bits << shift));
  // Shifting a word by its width is undefined.
  const uint64_t spill = shift == 0 ? 0 : bits >> (kPerWord - shift);
  if (spill != 0) set += CountBits(OrWord(i + 1, spill));
  return PageCount(set);
}

PageCount PageBitmapView::MergeFrom(PageBitmapView other, PageIndex at) const {
  POSTCOPY_CHECK((at + other.pages()).value() <= pages_.value());
  PageCount set;
  for (size_t i = 0; i < other.word_count(); ++i) {
    const uint64_t bits = other.LoadWord(i);
    if (bits != 0) set += OrAt(at + PageCount(i * kPerWord), bits);
  }
  return set;
}

PageCount PageBitmapView::MoveFrom(PageBitmapView other, PageIndex at) const {
  POSTCOPY_CHECK((at + other.pages()).value() <= pages_.value());
  PageCount set;
  for (size_t i = 0; i < other.word_count(); ++i) {
    const uint64_t bits = other.TakeWord(i);
    if (bits != 0) set += OrAt(at + PageCount(i * kPerWord), bits);
  }
  return set;
}

absl::StatusOr<PageBitmap> PageBitmap::Create(PageCount pages) {
  if (pages.empty()) return PageBitmap();
  // NORESERVE: most bitmaps of a large VM stay mostly untouched.
  void* memory =
      ::mmap(nullptr, ByteSize(pages).value(), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a bitmap of ", ToString(pages), " (",
                     ToString(ByteSize(pages)), "): errno ", errno));
  }
  return PageBitmap(
      PageBitmapView(static_cast<std::atomic<uint64_t>*>(memory), pages));
}

PageBitmap& PageBitmap::operator=(PageBitmap&& other) noexcept {
  if (this != &other) {
    Unmap();
    view_ = std::exchange(other.view_, PageBitmapView());
  }
  return *this;
}

void PageBitmap::Reset() {
  if (view_.words() == nullptr) return;
  // Private anonymous memory reads as zeros after MADV_DONTNEED.
  POSTCOPY_CHECK(
      ::madvise(view_.words(), ByteSize(pages()).value(), MADV_DONTNEED) == 0);
}

void PageBitmap::Unmap() {
  if (view_.words() == nullptr) return;
  ::munmap(view_.words(), ByteSize(pages()).value());
}

}  // namespace postcopy
