// What the pages of a replay hold: bytes that follow from the page's number, so
// that one that is lost, stale or in the wrong place shows.
#ifndef CMD_FAULTREPLAY_PAGE_PATTERN_H_
#define CMD_FAULTREPLAY_PAGE_PATTERN_H_

#include <cstddef>
#include <cstdint>

#include "dirtytrack/types.h"

namespace postcopy {

// Which of several contents: what a page holds in the end, and what it held
// before the guest wrote it for the last time.
enum class PageVersion : uint64_t { kFinal, kStale };

inline constexpr size_t kPatternWords = kPageSize / sizeof(uint64_t);

// Word `index` of `page`. No page is all zeros, and no two are equal.
inline uint64_t PatternWord(PageIndex page, PageVersion version, size_t index) {
  const uint64_t start = page.value() << 1 | static_cast<uint64_t>(version);
  return (start + 1) * 0x9E3779B97F4A7C15 + index;
}

// `memory` is aligned to words, kPageSize bytes.
inline void FillPage(PageIndex page, PageVersion version, uint8_t* memory) {
  auto* const words = reinterpret_cast<uint64_t*>(memory);
  for (size_t i = 0; i < kPatternWords; ++i) {
    words[i] = PatternWord(page, version, i);
  }
}

// True if all of `memory` is the final content of `page`.
inline bool HoldsPage(PageIndex page, const uint8_t* memory) {
  const auto* const words = reinterpret_cast<const uint64_t*>(memory);
  uint64_t wrong = 0;
  for (size_t i = 0; i < kPatternWords; ++i) {
    wrong |= words[i] ^ PatternWord(page, PageVersion::kFinal, i);
  }
  return wrong == 0;
}

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_PAGE_PATTERN_H_
