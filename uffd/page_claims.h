// Lets one installer at a time write a page into its file.
#ifndef UFFD_PAGE_CLAIMS_H_
#define UFFD_PAGE_CLAIMS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "dirtytrack/types.h"

namespace postcopy {

// Most pages that one claim can cover: what one answer of the bulk lane has.
inline constexpr PageCount kMaxClaimedPages{64};

// Where bytes reach a page through its file (UFFDIO_CONTINUE), the kernel does
// not keep a second answer from overwriting what the guest has written behind
// the first one. So whoever writes claims the pages, and only then looks
// whether they are missing.
//
// A bit for each page modulo kBits, so of fixed size (8 KiB); pages that share
// a bit wait for each other for no longer than one write of kMaxClaimedPages.
// Thread-safe. Memory ordering: what the former holder did happens before what
// the next one does.
class PageClaims {
 public:
  static constexpr uint64_t kBits = uint64_t{1} << 16;

  // A claim, until it is destroyed. An empty one holds nothing.
  class Claim {
   public:
    Claim() = default;
    Claim(PageClaims* claims, PageRun run) : claims_(claims), run_(run) {}
    Claim(Claim&& other) noexcept
        : claims_(std::exchange(other.claims_, nullptr)), run_(other.run_) {}
    Claim& operator=(Claim&&) = delete;
    ~Claim() {
      if (claims_ != nullptr) claims_->Release(run_);
    }

   private:
    PageClaims* claims_ = nullptr;
    PageRun run_;
  };

  // Waits until all of `run` is claimed by nobody else, and claims it: as long
  // as their holders take to write. Who has a claim must not ask for another.
  // REQUIRES: 1 to kMaxClaimedPages pages.
  Claim Take(PageRun run);

  // True if all of `run` could be claimed at once, and is. Else nothing is.
  // REQUIRES: as Take.
  bool TryTake(PageRun run);
  // REQUIRES: taken.
  void Release(PageRun run);

 private:
  static constexpr uint64_t kBitsPerWord = 64;
  static constexpr size_t kWords = kBits / kBitsPerWord;

  // The bits of a run lie in one word or in two, the second perhaps the first
  // of all.
  struct Bits {
    size_t word;
    uint64_t mask;
    size_t next_word;
    uint64_t next_mask;
  };
  static Bits BitsOf(PageRun run);
  bool TryTakeWord(size_t word, uint64_t mask);
  void ReleaseWord(size_t word, uint64_t mask);

  std::array<std::atomic<uint64_t>, kWords> words_{};
};

}  // namespace postcopy

#endif  // UFFD_PAGE_CLAIMS_H_
