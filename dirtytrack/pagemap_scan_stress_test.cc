// The proof: another process writes all the time, and a copy of its memory,
// kept by copying nothing but the pages that were reported, stays the same byte
// by byte. On the real kernel, for each kind of memory and both ways to track.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/config.h"
#include "dirtytrack/pagemap_scan_source.h"
#include "dirtytrack/proof_rounds.h"
#include "dirtytrack/tracked_child.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using Memory = TrackedChild::Memory;
using Mode = PagemapScanSource::Mode;
using Set = std::set<uint64_t>;

#if defined(ABSL_HAVE_ADDRESS_SANITIZER) || defined(ABSL_HAVE_THREAD_SANITIZER)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif

constexpr ByteCount kHuge = PagemapScanSource::kHugePageSize;
const int kRounds = ProofRounds();
constexpr int kRoundsPerCheck = 10;

bool IsHuge(Memory memory) {
  return memory == Memory::kHugeAnonymous || memory == Memory::kHugeMemfd;
}

ByteCount SizeOf(Memory memory) {
  if (IsHuge(memory)) return ByteCount(2 * kHuge.value());
  return ByteCount(uint64_t{kSlow ? 2 : 4} << 20);
}

ByteCount KernelPageOf(Memory memory) {
  return IsHuge(memory) ? kHuge : ByteCount(kPageSize);
}

// A child that writes, and a copy of its memory that is kept by copying nothing
// but what was reported.
class ShadowTest : public testing::TestWithParam<std::tuple<Memory, Mode>> {
 protected:
  ShadowTest()
      : memory_(std::get<0>(GetParam())),
        mode_(std::get<1>(GetParam())),
        bytes_(SizeOf(memory_)),
        pages_(PagesIn(bytes_)),
        dirty_(*PageBitmap::Create(pages_)),
        shadow_(bytes_.value(), 0xee),
        truth_(bytes_.value()) {}

  void SetUp() override {
    if (IsHuge(memory_)) huge_pages_.emplace(bytes_.value() / kHuge.value());
    absl::StatusOr<std::unique_ptr<TrackedChild>> child =
        TrackedChild::Start(memory_, bytes_);
    if (IsLackOfThisMachine(child.status())) GTEST_SKIP() << child.status();
    ASSERT_TRUE(child.ok()) << child.status();
    child_ = *std::move(child);
    absl::StatusOr<std::unique_ptr<PagemapScanSource>> source =
        PagemapScanSource::Create(
            *RamLayout::Create({{"ram", RamOffset(0), bytes_}}),
            {{child_->address(), KernelPageOf(memory_)}}, child_->TakePagemap(),
            mode_);
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
    const absl::Status started = source_->Start();
    if (IsLackOfThisMachine(started)) GTEST_SKIP() << started;
    ASSERT_TRUE(started.ok()) << started;
    Copy({PageIndex(0), pages_});
  }

  void Copy(PageRun run) {
    const absl::Status status =
        child_->Read(run, shadow_.data() + OffsetOf(run.first).value());
    ASSERT_TRUE(status.ok()) << status;
  }

  void Collect() {
    const absl::StatusOr<PageCount> set = source_->Collect(dirty_.view());
    ASSERT_TRUE(set.ok()) << set.status();
  }

  // Clears the pages of `window` that are dirty, then copies them.
  void Send(PageRun window) {
    const absl::Status cleared = source_->Clear(dirty_.view(), window);
    ASSERT_TRUE(cleared.ok()) << cleared;
    PageIndex at = window.first;
    while (auto run = dirty_.view().NextSetRun(at, window.end() - at)) {
      if (run->first >= window.end()) break;
      Copy({run->first, std::min(run->end(), window.end()) - run->first});
      at = run->end();
      if (at >= window.end()) break;
    }
    dirty_.view().ClearRun(window);
  }

  // As a migration does it: in parts of any size. Now and then it stops in the
  // middle and puts the rest back.
  void Round() {
    ASSERT_NO_FATAL_FAILURE(Collect());
    const bool give_up = random_() % 16 == 0;
    for (PageIndex at; at < PageIndex(pages_.value());) {
      const auto next = dirty_.view().NextSetRun(at, PageCount(1));
      if (!next.has_value()) break;
      if (give_up && random_() % 16 == 0) break;
      const PageIndex end(pages_.value());
      const PageCount count(1 + random_() % (2 * LargestPart()));
      ASSERT_NO_FATAL_FAILURE(
          Send({next->first, std::min(end - next->first, count)}));
      at = std::min(end, next->first + count);
    }
    ASSERT_TRUE(source_->Restore(dirty_.view()).ok());
    dirty_.Reset();
  }

  uint64_t LargestPart() const {
    return IsHuge(memory_) ? PagesIn(kHuge).value() / 2 : 64;
  }

  // The child paused, what it wrote copied: as a migration ends.
  void Finish() {
    child_->Pause();
    while (true) {
      ASSERT_NO_FATAL_FAILURE(Collect());
      if (!dirty_.view().Any()) return;
      ASSERT_NO_FATAL_FAILURE(Send({PageIndex(0), pages_}));
    }
  }

  // Byte by byte.
  Set DifferingPages() {
    Set differing;
    const absl::Status status =
        child_->Read({PageIndex(0), pages_}, truth_.data());
    EXPECT_TRUE(status.ok()) << status;
    for (uint64_t page = 0; page < pages_.value(); ++page) {
      if (std::memcmp(&truth_[page * kPageSize], &shadow_[page * kPageSize],
                      kPageSize) != 0) {
        differing.insert(page);
      }
    }
    return differing;
  }

  const Memory memory_;
  const Mode mode_;
  const ByteCount bytes_;
  const PageCount pages_;
  std::optional<ReservedHugePages> huge_pages_;  // outlives the child
  std::unique_ptr<TrackedChild> child_;
  std::unique_ptr<PagemapScanSource> source_;
  PageBitmap dirty_;
  std::vector<uint8_t> shadow_;
  std::vector<uint8_t> truth_;
  std::mt19937_64 random_{2};
};

TEST_P(ShadowTest, NoWriteIsLost) {
  // Few enough that most pages stay as they were: a page that is written again
  // soon would hide that it was missed. Now and then many, for long rounds.
  const uint64_t few = IsHuge(memory_) ? 5 : 100;
  const uint64_t many = IsHuge(memory_) ? 5 : 1000;
  for (int round = 1; round <= kRounds; ++round) {
    child_->Allow(random_() % ((round % 16 == 0 ? many : few) + 1));
    ASSERT_NO_FATAL_FAILURE(Round());
    if (round % kRoundsPerCheck == 0) {
      ASSERT_NO_FATAL_FAILURE(Finish());
      ASSERT_EQ(DifferingPages(), Set()) << "round " << round;
    }
  }
  EXPECT_GT(child_->writes(), static_cast<uint64_t>(kRounds) / 4);
  RecordProperty("writes", std::to_string(child_->writes()));
}

TEST_P(ShadowTest, NoWriteIsLostAtFullSpeed) {
  child_->Allow(UINT64_MAX / 2);
  for (int round = 1; round <= 200; ++round) {
    ASSERT_NO_FATAL_FAILURE(Round());
  }
  ASSERT_NO_FATAL_FAILURE(Finish());
  EXPECT_EQ(DifferingPages(), Set());
}

// The harness can fail.
TEST_P(ShadowTest, TheComparisonNoticesOnePageThatWasNotCopied) {
  child_->Allow(1000);
  for (int round = 0; round < 100; ++round) {
    ASSERT_NO_FATAL_FAILURE(Round());
  }
  ASSERT_NO_FATAL_FAILURE(Finish());
  ASSERT_EQ(DifferingPages(), Set());
  const PageIndex page(pages_.value() / 3);
  child_->Poke(page);
  ASSERT_NO_FATAL_FAILURE(Collect());
  ASSERT_TRUE(dirty_.view().TestAndClear(page));
  ASSERT_NO_FATAL_FAILURE(Send({PageIndex(0), pages_}));
  EXPECT_EQ(DifferingPages(), Set({page.value()}));
}

// Nor is the order of Clear and reading a matter of taste, where Clear takes.
TEST_P(ShadowTest, ReadingBeforeClearingLosesAWrite) {
  const PageIndex page(7);
  child_->Poke(page);
  ASSERT_NO_FATAL_FAILURE(Collect());
  Copy({page, PageCount(1)});
  child_->Poke(page);
  ASSERT_TRUE(source_->Clear(dirty_.view(), {page, PageCount(1)}).ok());
  dirty_.Reset();
  ASSERT_NO_FATAL_FAILURE(Finish());
  EXPECT_EQ(DifferingPages(),
            mode_ == Mode::kTakeAtOnce ? Set() : Set({page.value()}));
}

TEST_P(ShadowTest, AWrittenPageReportsItsKernelPageAndNothingElse) {
  ASSERT_NO_FATAL_FAILURE(Finish());
  child_->Poke(PageIndex(5));
  ASSERT_NO_FATAL_FAILURE(Collect());
  const PageRun expected = IsHuge(memory_)
                               ? PageRun{PageIndex(0), PagesIn(kHuge)}
                               : PageRun{PageIndex(5), PageCount(1)};
  EXPECT_EQ(dirty_.view().NextSetRun(PageIndex(0)), expected);
  EXPECT_EQ(dirty_.view().Count(), expected.count);
}

std::string NameOf(
    const testing::TestParamInfo<std::tuple<Memory, Mode>>& info) {
  constexpr const char* kMemories[] = {"Anonymous", "Memfd", "HugeAnonymous",
                                       "HugeMemfd"};
  const auto& [memory, mode] = info.param;
  return std::string(kMemories[static_cast<int>(memory)]) +
         (mode == Mode::kTakeAtOnce ? "TakeAtOnce" : "ClearBeforeRead");
}

INSTANTIATE_TEST_SUITE_P(
    All, ShadowTest,
    testing::Combine(
        testing::Values(Memory::kAnonymous, Memory::kMemfd,
                        Memory::kHugeAnonymous, Memory::kHugeMemfd),
        testing::Values(Mode::kTakeAtOnce, Mode::kClearBeforeRead)),
    NameOf);

}  // namespace
}  // namespace postcopy
