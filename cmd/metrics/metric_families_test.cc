#include "cmd/metrics/metric_families.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <string>

#include "cmd/metrics/process_metrics.h"
#include "cmd/metrics/vm_metrics.h"

namespace postcopy {
namespace {

TEST(MetricFamiliesTest, LabelsOfOneNameAreOneFamily) {
  MetricFamilies families;
  families.Counter("a_total", "A.", 1, {{"lane", "bulk"}});
  families.Gauge("b", "B.", 2);
  families.Counter("a_total", "A.", 3, {{"lane", "urgent"}});
  const auto taken = families.Take();
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_EQ(taken[0].name, "a_total");
  ASSERT_EQ(taken[0].metric.size(), 2u);
  EXPECT_EQ(taken[0].metric[1].label[0].value, "urgent");
  EXPECT_EQ(taken[0].metric[1].counter.value, 3);
  EXPECT_EQ(taken[1].metric[0].gauge.value, 2);
  EXPECT_TRUE(families.Take().empty());
}

// QEMU's buckets, in seconds; what is beyond the last is in the count alone.
TEST(MetricFamiliesTest, HistogramsHaveBoundsOfPowersOfTwoMicroseconds) {
  LatencyTotals latency;
  latency.buckets[0] = 5;    // [0, 2) us
  latency.buckets[1] = 7;    // [2, 4) us
  latency.buckets[31] = 11;  // [2^31, ...) us
  latency.sum_ns = 2'500'000'000;
  MetricFamilies families;
  families.Histogram("a_seconds", "A.", latency);
  const auto histogram = families.Take()[0].metric[0].histogram;
  ASSERT_EQ(histogram.bucket.size(), 31u);
  EXPECT_DOUBLE_EQ(histogram.bucket[0].upper_bound, 2e-6);
  EXPECT_EQ(histogram.bucket[0].cumulative_count, 5u);
  EXPECT_DOUBLE_EQ(histogram.bucket[1].upper_bound, 4e-6);
  EXPECT_EQ(histogram.bucket[1].cumulative_count, 12u);
  EXPECT_DOUBLE_EQ(histogram.bucket[30].upper_bound, 2147.483648);
  EXPECT_EQ(histogram.bucket[30].cumulative_count, 12u);
  EXPECT_EQ(histogram.sample_count, 23u);
  EXPECT_DOUBLE_EQ(histogram.sample_sum, 2.5);
}

TEST(VmTotalsTest, AddsEverything) {
  VmTotals one;
  for (uint64_t& counter : one.counters) counter = 1;
  one.fault_latency.buckets[3] = 1;
  one.fault_latency.sum_ns = 1;
  for (LatencyTotals& stage : one.fault_stages) stage.buckets[31] = 1;
  one.remaining_pages = 1;
  one.outstanding_faults = 1;
  VmTotals sum = one;
  sum.Add(one);
  for (const uint64_t counter : sum.counters) EXPECT_EQ(counter, 2u);
  EXPECT_EQ(sum.fault_latency.buckets[3], 2u);
  EXPECT_EQ(sum.fault_latency.sum_ns, 2u);
  for (const LatencyTotals& stage : sum.fault_stages) {
    EXPECT_EQ(stage.buckets[31], 2u);
  }
  EXPECT_EQ(sum.remaining_pages, 2u);
  EXPECT_EQ(sum.outstanding_faults, 2u);
}

// Nothing is counted and then not shown: each counter changes what is told.
TEST(VmMetricsTest, EveryCounterIsShown) {
  const auto told = [](const VmTotals& totals) {
    MetricFamilies families;
    AddVmMetrics("source", totals, families);
    double sum = 0;
    for (const auto& family : families.Take()) {
      for (const auto& metric : family.metric) {
        sum += metric.counter.value + metric.summary.sample_sum +
               static_cast<double>(metric.summary.sample_count);
      }
    }
    return sum;
  };
  for (size_t i = 0; i < kVmCounters; ++i) {
    VmTotals totals;
    totals.counters[i] = 1'000'000'000;
    EXPECT_GT(told(totals), 0) << "counter " << i;
  }
}

TEST(ProcessMetricsTest, AreThoseOfThisProcess) {
  MetricFamilies families;
  AddProcessMetrics(families);
  std::map<std::string, double> values;
  for (const auto& family : families.Take()) {
    const auto& metric = family.metric[0];
    values[family.name] = metric.gauge.value + metric.counter.value;
  }
  const double now = std::chrono::duration<double>(
                         std::chrono::system_clock::now().time_since_epoch())
                         .count();
  EXPECT_GT(values["process_resident_memory_bytes"], 100e3);
  EXPECT_LT(values["process_resident_memory_bytes"],
            values["process_virtual_memory_bytes"]);
  // Boot time has whole seconds, and the clock may have been set since.
  EXPECT_GT(values["process_start_time_seconds"], now - 86400);
  EXPECT_LT(values["process_start_time_seconds"], now + 60);
  EXPECT_GE(values["process_cpu_seconds_total"], 0);
  EXPECT_GE(values["process_open_fds"], 3);
  EXPECT_GE(values["process_max_fds"], values["process_open_fds"]);
  EXPECT_EQ(values["postcopy_build_info"], 1);
}

}  // namespace
}  // namespace postcopy
