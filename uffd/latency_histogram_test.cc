#include "uffd/latency_histogram.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

TEST(LatencyHistogramTest, EmptyIsZero) {
  const LatencySnapshot snapshot = LatencyHistogram().Snapshot();
  EXPECT_EQ(snapshot.count(), 0u);
  EXPECT_EQ(snapshot.max_ns(), 0u);
  EXPECT_EQ(snapshot.PercentileNs(50), 0u);
  EXPECT_EQ(snapshot.PercentileNs(100), 0u);
}

TEST(LatencyHistogramTest, OneValueStaysWithinASixteenth) {
  // Around every power of two, up to the largest.
  for (int shift = 0; shift < 63; ++shift) {
    for (int64_t delta : {-1, 0, 1, 12345}) {
      const int64_t value = (int64_t{1} << shift) + delta;
      if (value < 0) continue;
      LatencyHistogram other;  // so that the maximum does not cut the answer
      other.Record(value);
      other.Record(INT64_MAX);
      const uint64_t found = other.Snapshot().PercentileNs(50);
      EXPECT_GE(found, static_cast<uint64_t>(value));
      EXPECT_LE(found - value, static_cast<uint64_t>(value) / 16) << value;
    }
  }
}

TEST(LatencyHistogramTest, ValuesBelowThirtyTwoAreExact) {
  for (int64_t value = 0; value < 32; ++value) {
    LatencyHistogram histogram;
    histogram.Record(value);
    histogram.Record(1000);
    EXPECT_EQ(histogram.Snapshot().PercentileNs(50),
              static_cast<uint64_t>(value));
  }
}

TEST(LatencyHistogramTest, PercentilesOfManyValues) {
  std::mt19937_64 random(1);
  std::lognormal_distribution<double> spread(11, 1.5);
  LatencyHistogram histogram;
  std::vector<uint64_t> values;
  uint64_t sum = 0;
  for (int i = 0; i < 100'000; ++i) {
    values.push_back(static_cast<uint64_t>(spread(random)));
    sum += values.back();
    histogram.Record(static_cast<int64_t>(values.back()));
  }
  std::sort(values.begin(), values.end());
  const LatencySnapshot snapshot = histogram.Snapshot();
  EXPECT_EQ(snapshot.count(), values.size());
  EXPECT_EQ(snapshot.sum_ns(), sum);
  EXPECT_EQ(snapshot.max_ns(), values.back());
  for (double percent : {0.001, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0}) {
    const size_t rank = static_cast<size_t>(
        std::ceil(percent / 100 * static_cast<double>(values.size())));
    const uint64_t exact = values[rank - 1];
    EXPECT_GE(snapshot.PercentileNs(percent), exact) << percent;
    EXPECT_LE(snapshot.PercentileNs(percent), exact + exact / 16) << percent;
  }
}

TEST(LatencyHistogramTest, BucketsOfQemu) {
  LatencyHistogram histogram;
  histogram.Record(0);
  histogram.Record(1'999);
  histogram.Record(2'000);
  histogram.Record(3'999);
  histogram.Record(4'000);
  histogram.Record(1'024'000);
  histogram.Record(INT64_MAX);
  const auto buckets = histogram.Snapshot().micros_buckets();
  EXPECT_EQ(buckets[0], 2u);
  EXPECT_EQ(buckets[1], 2u);
  EXPECT_EQ(buckets[2], 1u);
  EXPECT_EQ(buckets[10], 1u);
  EXPECT_EQ(buckets[31], 1u);
}

TEST(LatencyHistogramTest, NegativeCountsAsZero) {
  LatencyHistogram histogram;
  histogram.Record(-5);
  EXPECT_EQ(histogram.Snapshot().count(), 1u);
  EXPECT_EQ(histogram.Snapshot().max_ns(), 0u);
}

TEST(LatencyHistogramTest, ThreadsLoseNothing) {
  LatencyHistogram histogram;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&histogram, i] {
      for (int value = 0; value < 10'000; ++value) {
        histogram.Record(value * 4 + i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(histogram.Snapshot().count(), 40'000u);
  EXPECT_EQ(histogram.Snapshot().max_ns(), 39'999u);
}

}  // namespace
}  // namespace postcopy
