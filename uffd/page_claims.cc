#include "uffd/page_claims.h"

#include <sched.h>
#include <time.h>

#include "dirtytrack/check.h"

namespace postcopy {
namespace {

constexpr int kYields = 1'000;

void Pause(int tries) {
  constexpr timespec kSleep = {.tv_sec = 0, .tv_nsec = 50'000};
  if (tries < kYields) {
    ::sched_yield();
  } else {
    ::nanosleep(&kSleep, nullptr);
  }
}

}  // namespace

PageClaims::Claim PageClaims::Take(PageRun run) {
  // Its holder writes at most kMaxClaimedPages, which takes microseconds, or as
  // long as the VMM holds the lock of its own file.
  for (int tries = 0; !TryTake(run); ++tries) Pause(tries);
  return Claim(this, run);
}

bool PageClaims::TryTake(PageRun run) {
  const Bits bits = BitsOf(run);
  if (!TryTakeWord(bits.word, bits.mask)) return false;
  if (TryTakeWord(bits.next_word, bits.next_mask)) return true;
  ReleaseWord(bits.word, bits.mask);
  return false;
}

void PageClaims::Release(PageRun run) {
  const Bits bits = BitsOf(run);
  ReleaseWord(bits.word, bits.mask);
  ReleaseWord(bits.next_word, bits.next_mask);
}

PageClaims::Bits PageClaims::BitsOf(PageRun run) {
  POSTCOPY_CHECK(!run.count.empty() && run.count <= kMaxClaimedPages);
  const uint64_t first = run.first.value() % kBits;
  const uint64_t shift = first % kBitsPerWord;
  const uint64_t ones = ~uint64_t{0} >> (kBitsPerWord - run.count.value());
  const size_t word = first / kBitsPerWord;
  return {.word = word,
          .mask = ones << shift,
          .next_word = (word + 1) % kWords,
          // In two steps: shifting by 64 is undefined.
          .next_mask = ones >> 1 >> (kBitsPerWord - 1 - shift)};
}

bool PageClaims::TryTakeWord(size_t word, uint64_t mask) {
  if (mask == 0) return true;
  const uint64_t before =
      words_[word].fetch_or(mask, std::memory_order_acquire);
  if ((before & mask) == 0) return true;
  // What others hold of it stays theirs.
  ReleaseWord(word, mask & ~before);
  return false;
}

void PageClaims::ReleaseWord(size_t word, uint64_t mask) {
  if (mask == 0) return;
  words_[word].fetch_and(~mask, std::memory_order_release);
}

}  // namespace postcopy
