#include "pageserver/recently_dirtied.h"

#include <cstdint>
#include <vector>

#include "dirtytrack/page_bitmap.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// `count` runs of one page, every other one from `first` on.
PageBitmap Scattered(uint64_t first, uint64_t count) {
  PageBitmap bitmap = *PageBitmap::Create(PageCount(first + 2 * count));
  for (uint64_t i = 0; i < count; ++i) {
    bitmap.view().SetRun(Pages(first + 2 * i, 1));
  }
  return bitmap;
}

TEST(RecentlyDirtiedTest, TheMostRecentComeFirst) {
  RecentlyDirtied dirtied;
  EXPECT_TRUE(dirtied.runs().empty());
  const PageBitmap bitmap = *PageBitmap::Create(PageCount(1000));
  bitmap.view().SetRun(Pages(5, 10));
  bitmap.view().SetRun(Pages(900, 100));
  dirtied.Add(bitmap.view());
  bitmap.view().ClearRun(Pages(0, 1000));
  dirtied.Add(bitmap.view());
  bitmap.view().SetRun(Pages(500, 1));
  dirtied.Add(bitmap.view());
  EXPECT_EQ(dirtied.runs(), (std::vector<PageRun>{Pages(500, 1), Pages(5, 10),
                                                  Pages(900, 100)}));
}

TEST(RecentlyDirtiedTest, KeepsSoManyRunsAndForgetsTheOldest) {
  RecentlyDirtied dirtied;
  dirtied.Add(Scattered(1, 2).view());
  dirtied.Add(Scattered(100, kDirtiedRunsKeptMax - 2).view());
  ASSERT_EQ(dirtied.runs().size(), kDirtiedRunsKeptMax);
  EXPECT_EQ(dirtied.runs().back(), Pages(3, 1));
  dirtied.Add(Scattered(50, 1).view());
  ASSERT_EQ(dirtied.runs().size(), kDirtiedRunsKeptMax);
  EXPECT_EQ(dirtied.runs().front(), Pages(50, 1));
  EXPECT_EQ(dirtied.runs().back(), Pages(1, 1));
}

TEST(RecentlyDirtiedTest, TakesSoManyRunsOfOneMomentAndNotOneMore) {
  RecentlyDirtied dirtied;
  dirtied.Add(Scattered(0, kDirtiedRunsKeptMax + 1).view());
  ASSERT_EQ(dirtied.runs().size(), kDirtiedRunsKeptMax);
  EXPECT_EQ(dirtied.runs().back(), Pages(2 * (kDirtiedRunsKeptMax - 1), 1));
}

}  // namespace
}  // namespace postcopy
