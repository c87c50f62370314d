#include "uffd/pending_faults.h"

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

using AddResult = PendingFaults::AddResult;

TEST(PendingFaultsTest, AddsOnceAndTakesOnce) {
  const auto faults = std::make_unique<PendingFaults>();
  EXPECT_EQ(faults->Add(PageIndex(7), 100), AddResult::kNew);
  EXPECT_EQ(faults->Add(PageIndex(7), 200), AddResult::kDuplicate);
  EXPECT_EQ(faults->size(), 1u);
  EXPECT_EQ(faults->Take(PageIndex(7)),
            (PendingFaults::Fault{.first_read_ns = 100, .duplicated = true}));
  EXPECT_EQ(faults->Take(PageIndex(7)), std::nullopt);
  EXPECT_EQ(faults->size(), 0u);
}

TEST(PendingFaultsTest, AtItsLimitAndOnePast) {
  const auto faults = std::make_unique<PendingFaults>();
  for (uint64_t i = 0; i < kMaxOutstandingFaults; ++i) {
    EXPECT_EQ(faults->Room(), kMaxOutstandingFaults - i);
    EXPECT_EQ(faults->Add(PageIndex(i * 512), 1), AddResult::kNew);
  }
  EXPECT_EQ(faults->Room(), 0u);
  EXPECT_EQ(faults->Add(PageIndex(1), 1), AddResult::kFull);
  EXPECT_EQ(faults->Add(PageIndex(512), 1), AddResult::kDuplicate);
  EXPECT_TRUE(faults->Take(PageIndex(512)).has_value());
  EXPECT_EQ(faults->Add(PageIndex(1), 1), AddResult::kNew);
}

TEST(PendingFaultsTest, AgreesWithAMap) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const auto faults = std::make_unique<PendingFaults>();
  std::map<PageIndex, int64_t> expected;
  for (int64_t step = 0; step < 200'000; ++step) {
    // Few pages, so that chains form, break and wrap around the table's end.
    const PageIndex page(random() % 1500);
    if (random() % 2 == 0) {
      const AddResult result = faults->Add(page, step);
      if (expected.contains(page)) {
        EXPECT_EQ(result, AddResult::kDuplicate);
      } else if (expected.size() == kMaxOutstandingFaults) {
        EXPECT_EQ(result, AddResult::kFull);
      } else {
        EXPECT_EQ(result, AddResult::kNew);
        expected[page] = step;
      }
    } else if (expected.contains(page)) {
      EXPECT_EQ(faults->Take(page)->first_read_ns, expected[page]);
      expected.erase(page);
    } else {
      EXPECT_EQ(faults->Take(page), std::nullopt);
    }
    ASSERT_EQ(faults->size(), expected.size());
  }
  std::vector<PageIndex> pages(kMaxOutstandingFaults);
  pages.resize(faults->CopyTo(absl::MakeSpan(pages)));
  std::sort(pages.begin(), pages.end());
  std::vector<PageIndex> keys;
  for (const auto& [page, time] : expected) keys.push_back(page);
  EXPECT_EQ(pages, keys);
}

}  // namespace
}  // namespace postcopy
