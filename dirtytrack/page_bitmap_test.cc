#include "dirtytrack/page_bitmap.h"

#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

PageBitmap MakeBitmap(uint64_t pages) {
  absl::StatusOr<PageBitmap> bitmap = PageBitmap::Create(PageCount(pages));
  EXPECT_TRUE(bitmap.ok()) << bitmap.status();
  return *std::move(bitmap);
}

PageRun Pages(uint64_t first, uint64_t end) {
  return {PageIndex(first), PageCount(end - first)};
}

// All set bits, found by Test alone.
std::set<uint64_t> SetPages(PageBitmapView bitmap) {
  std::set<uint64_t> pages;
  for (uint64_t p = 0; p < bitmap.pages().value(); ++p) {
    if (bitmap.Test(PageIndex(p))) pages.insert(p);
  }
  return pages;
}

TEST(PageBitmapTest, Sizes) {
  EXPECT_EQ(PageBitmap::WordCount(PageCount(0)), 0u);
  EXPECT_EQ(PageBitmap::WordCount(PageCount(1)), 1u);
  EXPECT_EQ(PageBitmap::WordCount(PageCount(64)), 1u);
  EXPECT_EQ(PageBitmap::WordCount(PageCount(65)), 2u);
  EXPECT_EQ(PageBitmap::WordCount(PageCount(UINT64_MAX)), uint64_t{1} << 58);
  EXPECT_EQ(PageBitmap::ByteSize(PageCount(65)), ByteCount(16));
}

TEST(PageBitmapTest, LayoutIsTheKernels) {
  const PageBitmap bitmap = MakeBitmap(128);
  bitmap.view().TestAndSet(PageIndex(0));
  bitmap.view().TestAndSet(PageIndex(9));
  bitmap.view().TestAndSet(PageIndex(127));
  uint8_t bytes[16];
  std::memcpy(bytes, bitmap.view().words(), sizeof(bytes));
  const uint8_t expected[16] = {1, 2, 0, 0, 0, 0, 0, 0,
                                0, 0, 0, 0, 0, 0, 0, 0x80};
  EXPECT_EQ(std::memcmp(bytes, expected, sizeof(bytes)), 0);
}

TEST(PageBitmapTest, EmptyBitmap) {
  const PageBitmap bitmap = MakeBitmap(0);
  EXPECT_EQ(bitmap.view().Count(), PageCount(0));
  EXPECT_FALSE(bitmap.view().Any());
  EXPECT_FALSE(bitmap.view().NextSetRun(PageIndex(0)).has_value());
  EXPECT_FALSE(bitmap.view().NextClearRun(PageIndex(0)).has_value());
  EXPECT_EQ(bitmap.view().MergeFrom(PageBitmapView()), PageCount(0));
}

TEST(PageBitmapTest, TooLargeForTheAddressSpace) {
  const absl::Status status =
      PageBitmap::Create(PageCount(uint64_t{1} << 55)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("no memory for a bitmap of"),
            absl::string_view::npos);
}

TEST(PageBitmapTest, SinglePages) {
  const PageBitmap bitmap = MakeBitmap(70);
  const PageBitmapView view = bitmap.view();
  for (uint64_t p : {0, 63, 64, 69}) {
    EXPECT_FALSE(view.TestAndSet(PageIndex(p)));
    EXPECT_TRUE(view.TestAndSet(PageIndex(p)));
    EXPECT_TRUE(view.Test(PageIndex(p)));
  }
  EXPECT_EQ(view.Count(), PageCount(4));
  EXPECT_TRUE(view.TestAndClear(PageIndex(63)));
  EXPECT_FALSE(view.TestAndClear(PageIndex(63)));
  EXPECT_EQ(SetPages(view), (std::set<uint64_t>{0, 64, 69}));
}

TEST(PageBitmapDeathTest, NoPageBeyondTheLast) {
  const PageBitmap bitmap = MakeBitmap(70);
  const PageBitmapView view = bitmap.view();
  EXPECT_DEATH(view.Test(PageIndex(70)), "check failed");
  EXPECT_DEATH(view.TestAndSet(PageIndex(70)), "check failed");
  EXPECT_DEATH(view.TestAndClear(PageIndex(70)), "check failed");
  EXPECT_DEATH(view.SetRun(Pages(69, 71)), "check failed");
  EXPECT_DEATH(view.ClearRun(Pages(69, 71)), "check failed");
  EXPECT_DEATH(view.CountRun(Pages(69, 71)), "check failed");
  EXPECT_DEATH(view.TakeWord(2), "check failed");
  EXPECT_DEATH(view.OrWord(2, 1), "check failed");
  EXPECT_DEATH(view.ClearWord(2, 1), "check failed");
  EXPECT_DEATH(view.LoadWord(2), "check failed");
  EXPECT_DEATH(view.MergeFrom(view, PageIndex(1)), "check failed");
  EXPECT_DEATH(view.NextSetRun(PageIndex(0), PageCount(0)), "check failed");
}

TEST(PageBitmapTest, RunsTellWhatTheyChanged) {
  const PageBitmap bitmap = MakeBitmap(300);
  const PageBitmapView view = bitmap.view();
  EXPECT_EQ(view.SetRun(Pages(60, 200)), PageCount(140));
  EXPECT_EQ(view.SetRun(Pages(50, 210)), PageCount(20));
  EXPECT_EQ(view.SetRun(Pages(5, 5)), PageCount(0));
  EXPECT_EQ(view.CountRun(Pages(0, 64)), PageCount(14));
  EXPECT_EQ(view.ClearRun(Pages(0, 64)), PageCount(14));
  EXPECT_EQ(view.ClearRun(Pages(0, 300)), PageCount(146));
  EXPECT_FALSE(view.Any());
  EXPECT_EQ(view.SetRun(Pages(0, 300)), PageCount(300));
  EXPECT_EQ(view.Count(), PageCount(300));
}

TEST(PageBitmapTest, Words) {
  const PageBitmap bitmap = MakeBitmap(70);
  const PageBitmapView view = bitmap.view();
  EXPECT_EQ(view.word_count(), 2u);
  EXPECT_EQ(view.OrWord(0, 0b1010), 0b1010u);
  EXPECT_EQ(view.OrWord(0, 0b1110), 0b0100u);
  EXPECT_EQ(view.OrWord(0, 0b1110), 0u);
  EXPECT_EQ(view.ClearWord(0, 0b10110), 0b0110u);
  EXPECT_EQ(view.ClearWord(0, 0b0110), 0u);
  EXPECT_EQ(view.LoadWord(0), 0b1000u);
  EXPECT_EQ(view.OrWord(0, 0b0110), 0b0110u);
  EXPECT_EQ(view.LoadWord(0), 0b1110u);
  EXPECT_EQ(view.TakeWord(0), 0b1110u);
  EXPECT_EQ(view.TakeWord(0), 0u);
  // Six pages are left for the last word.
  EXPECT_EQ(view.OrWord(1, ~uint64_t{0}), 0x3Fu);
  EXPECT_EQ(view.TakeWord(1), 0x3Fu);
}

TEST(PageBitmapTest, BitsBeyondTheLastPageDoNotExist) {
  const PageBitmap bitmap = MakeBitmap(70);
  const PageBitmapView view = bitmap.view();
  // As a process that shares the memory could set them.
  view.words()[1].store(~uint64_t{0x3F});
  EXPECT_FALSE(view.Any());
  EXPECT_EQ(view.Count(), PageCount(0));
  EXPECT_EQ(view.LoadWord(1), 0u);
  EXPECT_FALSE(view.NextSetRun(PageIndex(0)).has_value());
  EXPECT_EQ(view.NextClearRun(PageIndex(1)), Pages(1, 70));
  const PageBitmap into = MakeBitmap(128);
  EXPECT_EQ(into.view().MergeFrom(view), PageCount(0));
  EXPECT_EQ(into.view().MoveFrom(view, PageIndex(3)), PageCount(0));
  EXPECT_FALSE(into.view().Any());

  view.words()[1].store(~uint64_t{0});
  EXPECT_EQ(view.Count(), PageCount(6));
  EXPECT_EQ(view.NextSetRun(PageIndex(0)), Pages(64, 70));
  EXPECT_EQ(view.ClearRun(Pages(64, 70)), PageCount(6));
  view.words()[1].store(~uint64_t{0});
  EXPECT_EQ(view.TakeWord(1), 0x3Fu);
}

TEST(PageBitmapTest, WalksRuns) {
  const PageBitmap bitmap = MakeBitmap(1000);
  const PageBitmapView view = bitmap.view();
  view.SetRun(Pages(0, 1));
  view.SetRun(Pages(63, 65));
  view.SetRun(Pages(128, 256));
  view.SetRun(Pages(999, 1000));
  EXPECT_EQ(view.NextSetRun(PageIndex(0)), Pages(0, 1));
  EXPECT_EQ(view.NextSetRun(PageIndex(1)), Pages(63, 65));
  EXPECT_EQ(view.NextSetRun(PageIndex(64)), Pages(64, 65));
  EXPECT_EQ(view.NextSetRun(PageIndex(65)), Pages(128, 256));
  EXPECT_EQ(view.NextSetRun(PageIndex(256)), Pages(999, 1000));
  for (uint64_t from : {uint64_t{1000}, uint64_t{5000}, UINT64_MAX}) {
    EXPECT_FALSE(view.NextSetRun(PageIndex(from)).has_value());
    EXPECT_FALSE(view.NextClearRun(PageIndex(from)).has_value());
  }
  EXPECT_EQ(view.NextClearRun(PageIndex(0)), Pages(1, 63));
  EXPECT_EQ(view.NextClearRun(PageIndex(200)), Pages(256, 999));
  EXPECT_FALSE(view.NextClearRun(PageIndex(999)).has_value());
}

TEST(PageBitmapTest, CutsRuns) {
  const PageBitmap bitmap = MakeBitmap(1000);
  const PageBitmapView view = bitmap.view();
  view.SetRun(Pages(100, 300));
  EXPECT_EQ(view.NextSetRun(PageIndex(0), PageCount(1)), Pages(100, 101));
  EXPECT_EQ(view.NextSetRun(PageIndex(0), PageCount(64)), Pages(100, 164));
  EXPECT_EQ(view.NextSetRun(PageIndex(0), PageCount(200)), Pages(100, 300));
  EXPECT_EQ(view.NextSetRun(PageIndex(0), PageCount(201)), Pages(100, 300));
  EXPECT_EQ(view.NextClearRun(PageIndex(990), PageCount(50)), Pages(990, 1000));
}

// Random operations against std::set, whose every answer is compared.
TEST(PageBitmapTest, AgreesWithASet) {
  for (uint64_t pages : {1, 63, 64, 65, 200, 517}) {
    const PageBitmap bitmap = MakeBitmap(pages);
    const PageBitmapView view = bitmap.view();
    std::set<uint64_t> expected;
    std::mt19937_64 random(pages);
    for (int step = 0; step < 300; ++step) {
      const uint64_t first = random() % pages;
      const uint64_t end = first + random() % (pages - first + 1);
      uint64_t changed = 0;
      if (random() % 2) {
        for (uint64_t p = first; p < end; ++p) {
          changed += expected.insert(p).second;
        }
        ASSERT_EQ(view.SetRun(Pages(first, end)), PageCount(changed));
      } else {
        for (uint64_t p = first; p < end; ++p) changed += expected.erase(p);
        ASSERT_EQ(view.ClearRun(Pages(first, end)), PageCount(changed));
      }
      ASSERT_EQ(SetPages(view), expected);
      ASSERT_EQ(view.Count(), PageCount(expected.size()));
      ASSERT_EQ(view.Any(), !expected.empty());
      std::set<uint64_t> walked;
      PageIndex at;
      while (auto run = view.NextSetRun(at, PageCount(1 + random() % 100))) {
        for (PageIndex p = run->first; p < run->end(); p += PageCount(1)) {
          walked.insert(p.value());
        }
        at = run->end();
      }
      ASSERT_EQ(walked, expected);
      PageCount clear;
      at = PageIndex(0);
      while (auto run = view.NextClearRun(at)) {
        clear += run->count;
        at = run->end();
      }
      ASSERT_EQ(clear, PageCount(pages - expected.size()));
    }
  }
}

TEST(PageBitmapTest, MergesAtAnyOffset) {
  for (uint64_t at = 0; at < 130; ++at) {
    const PageBitmap from = MakeBitmap(150);
    const PageBitmap into = MakeBitmap(280);
    std::set<uint64_t> expected = {at + 3};
    into.view().TestAndSet(PageIndex(at + 3));
    for (uint64_t p : {0, 3, 63, 64, 100, 127, 149}) {
      from.view().TestAndSet(PageIndex(p));
      expected.insert(at + p);
    }
    // One of the seven was there.
    EXPECT_EQ(into.view().MergeFrom(from.view(), PageIndex(at)), PageCount(6));
    EXPECT_EQ(SetPages(into.view()), expected);
    EXPECT_EQ(from.view().Count(), PageCount(7));

    into.view().ClearRun(Pages(at, at + 64));
    EXPECT_EQ(into.view().MoveFrom(from.view(), PageIndex(at)), PageCount(3));
    EXPECT_EQ(SetPages(into.view()), expected);
    EXPECT_FALSE(from.view().Any());
  }
}

TEST(PageBitmapTest, MergeFillsToTheLastPageAndNoFurther) {
  const PageBitmap from = MakeBitmap(70);
  const PageBitmap into = MakeBitmap(100);
  from.view().SetRun(Pages(0, 70));
  EXPECT_EQ(into.view().MergeFrom(from.view(), PageIndex(30)), PageCount(70));
  EXPECT_DEATH(into.view().MergeFrom(from.view(), PageIndex(31)),
               "check failed");
}

TEST(PageBitmapTest, Moves) {
  PageBitmap a = MakeBitmap(10);
  const PageBitmapView view = a.view();
  PageBitmap b = std::move(a);
  // What is left of it is promised. NOLINTNEXTLINE(*use-after-move,*.Move)
  EXPECT_EQ(a.pages(), PageCount(0));
  view.TestAndSet(PageIndex(1));
  EXPECT_TRUE(b.view().Test(PageIndex(1)));
  a = MakeBitmap(20);
  a = std::move(b);
  EXPECT_EQ(a.pages(), PageCount(10));
  EXPECT_TRUE(a.view().Test(PageIndex(1)));
}

TEST(PageBitmapTest, ResetClears) {
  PageBitmap bitmap = MakeBitmap(100000);
  bitmap.view().SetRun(Pages(0, 100000));
  bitmap.Reset();
  EXPECT_FALSE(bitmap.view().Any());
  PageBitmap().Reset();
}

TEST(PageBitmapConcurrencyTest, OneClaimPerPage) {
  constexpr uint64_t kPages = 2000;
  const PageBitmap bitmap = MakeBitmap(kPages);
  std::atomic<uint64_t> claims = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (uint64_t p = 0; p < kPages; ++p) {
        if (!bitmap.view().TestAndSet(PageIndex(p))) ++claims;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(claims, kPages);
}

// A plain array stands for the pages: only the ordering of the bits keeps the
// two threads apart, which ThreadSanitizer checks.
TEST(PageBitmapConcurrencyTest, BytesComeBeforeTheBit) {
  constexpr uint64_t kPages = 1000;
  const PageBitmap bitmap = MakeBitmap(kPages);
  std::vector<uint64_t> bytes(kPages, 0);
  std::thread writer([&] {
    for (uint64_t p = 0; p < kPages; ++p) {
      bytes[p] = p + 1;
      if (p % 2) {
        bitmap.view().TestAndSet(PageIndex(p));
      } else {
        bitmap.view().SetRun(Pages(p, p + 1));
      }
    }
  });
  uint64_t seen = 0;
  while (seen < kPages) {
    for (size_t i = 0; i < bitmap.view().word_count(); ++i) {
      uint64_t word = bitmap.view().TakeWord(i);
      for (; word != 0; word &= word - 1, ++seen) {
        const uint64_t p = 64 * i + std::countr_zero(word);
        EXPECT_EQ(bytes[p], p + 1);
      }
    }
  }
  writer.join();
}

TEST(PageBitmapConcurrencyTest, MoveLosesNothing) {
  constexpr uint64_t kPages = 4000;
  const PageBitmap from = MakeBitmap(kPages);
  const PageBitmap into = MakeBitmap(kPages + 5);
  std::atomic<bool> done = false;
  std::thread writer([&] {
    for (uint64_t p = 0; p < kPages; ++p) from.view().TestAndSet(PageIndex(p));
    done = true;
  });
  PageCount moved;
  while (!done) moved += into.view().MoveFrom(from.view(), PageIndex(5));
  writer.join();
  moved += into.view().MoveFrom(from.view(), PageIndex(5));
  EXPECT_EQ(moved, PageCount(kPages));
  EXPECT_EQ(into.view().CountRun(Pages(5, kPages + 5)), PageCount(kPages));
}

TEST(PageBitmapTest, ClearRunWhere) {
  PageBitmap bitmap = *PageBitmap::Create(PageCount(300));
  PageBitmap other = *PageBitmap::Create(PageCount(310));
  const PageBitmapView view = bitmap.view();
  view.SetRun(Pages(10, 200));
  other.view().SetRun(Pages(60, 70));
  other.view().SetRun(Pages(128, 310));
  view.ClearRunWhere(other.view(), Pages(65, 150));
  EXPECT_EQ(view.NextSetRun(PageIndex(0)), Pages(10, 65));
  EXPECT_EQ(view.NextSetRun(PageIndex(65)), Pages(70, 128));
  EXPECT_EQ(view.NextSetRun(PageIndex(128)), Pages(150, 200));
  EXPECT_EQ(other.view().Count(), PageCount(192));
  view.ClearRunWhere(other.view(), Pages(0, 0));
  EXPECT_EQ(view.Count(), PageCount(163));
  EXPECT_DEATH(view.ClearRunWhere(other.view(), Pages(290, 301)),
               "check failed");
  EXPECT_DEATH(other.view().ClearRunWhere(view, Pages(290, 301)),
               "check failed");
}

}  // namespace
}  // namespace postcopy
