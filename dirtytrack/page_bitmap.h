// One bit per page: which pages are dirty, resident, missing, claimed.
//
// Page p is bit p % 64 of the little-endian 64-bit word p / 64, the layout of
// KVM_GET_DIRTY_LOG and VHOST_SET_LOG_BASE. Bits beyond the last page in the
// last word mean nothing: they are never reported, counted or set, even if
// another process that shares the memory sets them.
//
// Memory ordering. "Write a page's bytes, set its bit" in one thread and "see
// the bit, read the bytes" in another is in order:
//
//   Test, LoadWord, Count*, Any, Next*Run    acquire
//   TestAndSet, SetRun, OrWord, MergeFrom    acq_rel (one RMW per word)
//   TestAndClear, ClearRun*, TakeWord,
//   ClearWord                                acq_rel (one RMW per word)
//   MoveFrom                                 acq_rel on both bitmaps
//
// SetRun, OrWord, MergeFrom, ClearRunWhere leave out the RMW if no bit changes;
// there they only acquire. A thread that relies on its own release (it wrote
// bytes to a page that may be set already) uses TestAndSet, which never does.
//
// Every operation is atomic per word, none across words: against concurrent
// writers a count or a run is a mixture of moments, each bit true at its own.
#ifndef DIRTYTRACK_PAGE_BITMAP_H_
#define DIRTYTRACK_PAGE_BITMAP_H_

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "dirtytrack/check.h"
#include "dirtytrack/types.h"

namespace postcopy {

static_assert(std::endian::native == std::endian::little,
              "bitmaps are shared with the kernel as little-endian words");
static_assert(std::atomic<uint64_t>::is_always_lock_free &&
                  sizeof(std::atomic<uint64_t>) == sizeof(uint64_t),
              "bitmaps are shared between processes");

// Calls visit(size_t i, uint64_t mask) for each word i that `run` touches, in
// order, with the bits of the run in it.
template <typename Visit>
void ForEachWord(PageRun run, Visit visit) {
  const uint64_t end = run.end().value();
  for (uint64_t page = run.first.value(); page < end;) {
    const uint64_t i = page / 64;
    const uint64_t stop = std::min(end, (i + 1) * 64);
    visit(static_cast<size_t>(i), (~uint64_t{0} >> (64 - (stop - page)))
                                      << (page % 64));
    page = stop;
  }
}

// A bitmap in memory owned by somebody else; a value, like a span: copies name
// the same bits, and `const` is that of the view. Thread-safe, lock-free.
class PageBitmapView {
 public:
  static constexpr uint64_t kPagesPerWord = 64;

  // Words that hold `pages` bits.
  static constexpr size_t WordCount(PageCount pages) {
    return pages.value() / kPagesPerWord +
           (pages.value() % kPagesPerWord != 0 ? 1 : 0);
  }
  // Bytes of these words.
  static constexpr ByteCount ByteSize(PageCount pages) {
    return ByteCount(WordCount(pages) * sizeof(uint64_t));
  }

  // No pages.
  PageBitmapView() = default;
  // REQUIRES: `words` points to WordCount(pages) words that outlive the view.
  PageBitmapView(std::atomic<uint64_t>* words, PageCount pages)
      : words_(words), pages_(pages) {}

  PageCount pages() const { return pages_; }
  size_t word_count() const { return WordCount(pages_); }
  // The memory itself, for those who hand it to a system call.
  std::atomic<uint64_t>* words() const { return words_; }

  // The first `count` pages. REQUIRES: count <= pages().
  PageBitmapView First(PageCount count) const {
    POSTCOPY_CHECK(count <= pages_);
    return {words_, count};
  }

  // Single pages. REQUIRES: page < pages().
  //
  // True if the page's bit is set.
  bool Test(PageIndex page) const;
  // Sets the bit; true if it was set before. Of several threads that set one
  // clear bit exactly one gets false: a claim.
  bool TestAndSet(PageIndex page) const;
  // Clears the bit; true if it was set before.
  bool TestAndClear(PageIndex page) const;

  // Runs of pages. REQUIRES: run.end() <= pages(). An empty run does nothing.
  //
  // Sets every bit of `run`; returns how many were clear.
  PageCount SetRun(PageRun run) const;
  // Clears every bit of `run`; returns how many were set.
  PageCount ClearRun(PageRun run) const;
  // Clears every bit of `run` that is set in `other`.
  // REQUIRES: run.end() <= other.pages().
  void ClearRunWhere(PageBitmapView other, PageRun run) const;
  // How many bits of `run` are set.
  PageCount CountRun(PageRun run) const;

  // How many bits are set.
  PageCount Count() const;
  // True if any bit is set.
  bool Any() const;

  // The first run of consecutive set (clear) bits that begins at or after
  // `from`, cut to at most `max` pages; nullopt if there is none. If the bit at
  // `from` is set (clear) the run begins there, even if the bit before it is
  // set (clear) too. So `from = run.end()` walks all of them.
  // REQUIRES: max > 0. `from` may be any number, also past the end.
  std::optional<PageRun> NextSetRun(
      PageIndex from, PageCount max = PageCount(UINT64_MAX)) const;
  std::optional<PageRun> NextClearRun(
      PageIndex from, PageCount max = PageCount(UINT64_MAX)) const;

  // Sets here, `at` pages further on, every bit that is set in `other`;
  // returns how many were clear here. `at` need not be a multiple of 64.
  // REQUIRES: at + other.pages() <= pages(); the bitmaps do not overlap.
  PageCount MergeFrom(PageBitmapView other, PageIndex at = PageIndex(0)) const;
  // The same, and clears each word of `other` as it is taken: a bit set there
  // concurrently is either moved or left, never lost.
  PageCount MoveFrom(PageBitmapView other, PageIndex at = PageIndex(0)) const;

  // Words: bit b of word i is page 64 * i + b. REQUIRES: i < word_count().
  //
  uint64_t LoadWord(size_t i) const;
  // The set bits of word i, all of which are cleared.
  uint64_t TakeWord(size_t i) const;
  // Clears `bits` in word i; returns those of them that were set.
  uint64_t ClearWord(size_t i, uint64_t bits) const;
  // Sets `bits` in word i; returns those of them that were clear. Bits past
  // the last page are ignored.
  uint64_t OrWord(size_t i, uint64_t bits) const;

 private:
  // The bits of word i that are pages.
  uint64_t ValidBits(size_t i) const;
  // OrWord for 64 bits that begin at any page, `bits` << (at % 64) spilling
  // into the next word. Returns how many were clear.
  PageCount OrAt(PageIndex at, uint64_t bits) const;
  std::optional<PageRun> NextRun(PageIndex from, PageCount max,
                                 uint64_t flip) const;
  // The first page in [from, end) whose bit, complemented if `flip` is all
  // ones, is set; `end` if none. REQUIRES: end <= pages().
  uint64_t FindNext(uint64_t from, uint64_t end, uint64_t flip) const;

  std::atomic<uint64_t>* words_ = nullptr;
  PageCount pages_;
};

// A bitmap that owns its memory. All bits start clear; memory that was never
// set costs nothing. Move-only: moving keeps views valid, destruction ends
// them.
class PageBitmap {
 public:
  // RESOURCE_EXHAUSTED if there is no address space for it.
  static absl::StatusOr<PageBitmap> Create(PageCount pages);

  static constexpr size_t WordCount(PageCount pages) {
    return PageBitmapView::WordCount(pages);
  }
  static constexpr ByteCount ByteSize(PageCount pages) {
    return PageBitmapView::ByteSize(pages);
  }

  // No pages.
  PageBitmap() = default;
  PageBitmap(PageBitmap&& other) noexcept
      : view_(std::exchange(other.view_, PageBitmapView())) {}
  PageBitmap& operator=(PageBitmap&& other) noexcept;
  ~PageBitmap() { Unmap(); }

  PageBitmapView view() const { return view_; }
  PageCount pages() const { return view_.pages(); }

  // Clears every bit and gives the memory back to the kernel.
  // REQUIRES: no other thread uses the bitmap.
  void Reset();

 private:
  explicit PageBitmap(PageBitmapView view) : view_(view) {}
  void Unmap();

  PageBitmapView view_;
};

// What runs for every fault and every mark is inline.

inline uint64_t PageBitmapView::ValidBits(size_t i) const {
  POSTCOPY_CHECK(i < word_count());
  const uint64_t left = pages_.value() - i * kPagesPerWord;
  return left >= kPagesPerWord ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
}

inline bool PageBitmapView::Test(PageIndex page) const {
  POSTCOPY_CHECK(page.value() < pages_.value());
  const uint64_t word =
      words_[page.value() / kPagesPerWord].load(std::memory_order_acquire);
  return (word >> (page.value() % kPagesPerWord)) & 1;
}

inline bool PageBitmapView::TestAndSet(PageIndex page) const {
  POSTCOPY_CHECK(page.value() < pages_.value());
  const uint64_t bit = uint64_t{1} << (page.value() % kPagesPerWord);
  return words_[page.value() / kPagesPerWord].fetch_or(
             bit, std::memory_order_acq_rel) &
         bit;
}

inline bool PageBitmapView::TestAndClear(PageIndex page) const {
  POSTCOPY_CHECK(page.value() < pages_.value());
  const uint64_t bit = uint64_t{1} << (page.value() % kPagesPerWord);
  return words_[page.value() / kPagesPerWord].fetch_and(
             ~bit, std::memory_order_acq_rel) &
         bit;
}

inline uint64_t PageBitmapView::LoadWord(size_t i) const {
  const uint64_t valid = ValidBits(i);
  return words_[i].load(std::memory_order_acquire) & valid;
}

inline uint64_t PageBitmapView::TakeWord(size_t i) const {
  const uint64_t valid = ValidBits(i);
  // A clean word is not worth a cache line in exclusive state.
  if (words_[i].load(std::memory_order_acquire) == 0) return 0;
  return words_[i].exchange(0, std::memory_order_acq_rel) & valid;
}

inline uint64_t PageBitmapView::ClearWord(size_t i, uint64_t bits) const {
  bits &= LoadWord(i);
  if (bits == 0) return 0;
  return bits & words_[i].fetch_and(~bits, std::memory_order_acq_rel);
}

inline uint64_t PageBitmapView::OrWord(size_t i, uint64_t bits) const {
  bits &= ~LoadWord(i) & ValidBits(i);
  if (bits == 0) return 0;
  return bits & ~words_[i].fetch_or(bits, std::memory_order_acq_rel);
}

}  // namespace postcopy

#endif  // DIRTYTRACK_PAGE_BITMAP_H_
