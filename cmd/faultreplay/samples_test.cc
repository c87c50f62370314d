#include "cmd/faultreplay/samples.h"

#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "uffd/latency_histogram.h"

namespace postcopy {
namespace {

TEST(PercentileTest, IsTheSmallestThatEnoughDoNotExceed) {
  const std::vector<int64_t> sorted = {10, 20, 30, 40};
  EXPECT_EQ(PercentileOf(sorted, 25), 10);
  EXPECT_EQ(PercentileOf(sorted, 25.1), 20);
  EXPECT_EQ(PercentileOf(sorted, 50), 20);
  EXPECT_EQ(PercentileOf(sorted, 99.9), 40);
  EXPECT_EQ(PercentileOf(sorted, 100), 40);
  EXPECT_EQ(PercentileOf(sorted, 1e-9), 10);
  EXPECT_EQ(PercentileOf({}, 50), 0);
}

// What the daemons report is a histogram's; what is measured here is exact.
TEST(PercentileTest, TheDaemonsHistogramIsWithinItsBoundOfTheExactOne) {
  LatencyHistogram histogram;
  std::vector<Wait> waits;
  uint64_t state = 1;
  for (int i = 0; i < 20000; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    // From nanoseconds to seconds.
    const auto latency =
        static_cast<int64_t>((state >> 34) >> (state >> 8 & 31));
    histogram.Record(latency);
    waits.push_back({.start_ns = 0, .latency_ns = latency});
  }
  const std::vector<int64_t> sorted = SortedLatencies(waits);
  for (double percent : {0.01, 1.0, 10.0, 50.0, 90.0, 99.0, 99.9, 100.0}) {
    const int64_t exact = PercentileOf(sorted, percent);
    const auto told =
        static_cast<int64_t>(histogram.Snapshot().PercentileNs(percent));
    EXPECT_GE(told, exact) << percent;
    EXPECT_LE(told, exact + exact / 16) << percent;
  }
}

TEST(WaitsTest, SumAndUnion) {
  const std::vector<Wait> waits = {
      {100, 50}, {120, 10}, {0, 10}, {140, 30}, {170, 5}};
  EXPECT_EQ(SumOfWaits(waits), 105);
  // [0, 10), [100, 175).
  EXPECT_EQ(UnionOfWaits(waits), 85);
  EXPECT_EQ(UnionOfWaits({}), 0);
  EXPECT_THAT(SortedLatencies(waits),
              ::testing::ElementsAre(5, 10, 10, 30, 50));
}

TEST(MedianTest, OfOddEvenAndNone) {
  EXPECT_EQ(MedianOf({3, 1, 2}), 2);
  EXPECT_EQ(MedianOf({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(MedianOf({}), 0);
}

TEST(MedianTest, SpreadIsRelativeToTheMedian) {
  EXPECT_EQ(SpreadOf({90, 100, 120}), 0.3);
  EXPECT_EQ(SpreadOf({100}), 0);
  EXPECT_EQ(SpreadOf({0, 0}), 0);
}

}  // namespace
}  // namespace postcopy
