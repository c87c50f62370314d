#include "uffd/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "dirtytrack/check.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

constexpr size_t kSubBuckets = LatencySnapshot::kSubBuckets;
constexpr int kSubBits = std::bit_width(kSubBuckets) - 1;
static_assert(std::has_single_bit(kSubBuckets));

// Bucket of `ns`: octave by octave, kSubBuckets each. The first two octaves'
// worth, [0, 2 * kSubBuckets), are exact.
size_t BucketOf(uint64_t ns) {
  if (ns < kSubBuckets) return ns;
  const int shift = static_cast<int>(std::bit_width(ns)) - 1 - kSubBits;
  return shift * kSubBuckets + (ns >> shift);
}

// The largest value of bucket `index`.
uint64_t UpperEnd(size_t index) {
  if (index < 2 * kSubBuckets) return index;
  const int shift = static_cast<int>(index / kSubBuckets) - 1;
  const uint64_t first = uint64_t{index - shift * kSubBuckets} << shift;
  return first + ((uint64_t{1} << shift) - 1);
}

size_t MicrosBucketOf(uint64_t ns) {
  const uint64_t micros = ns / kNanosPerMicro;
  if (micros <= 1) return 0;
  return std::min<size_t>(std::bit_width(micros) - 1,
                          LatencySnapshot::kMicrosBuckets - 1);
}

void Add(std::atomic<uint64_t>* counter, uint64_t value) {
  counter->fetch_add(value, std::memory_order_relaxed);
}

}  // namespace

uint64_t LatencySnapshot::PercentileNs(double percent) const {
  POSTCOPY_CHECK(percent > 0 && percent <= 100);
  const double wanted = std::ceil(static_cast<double>(count_) * percent / 100);
  uint64_t seen = 0;
  for (size_t i = 0; i < kBuckets; ++i) {
    seen += buckets_[i];
    if (seen > 0 && static_cast<double>(seen) >= wanted) {
      // No duration of the bucket is longer than the longest of all.
      return std::min(UpperEnd(i), max_ns_);
    }
  }
  return 0;
}

void LatencyHistogram::Record(int64_t ns) {
  const uint64_t value = ns > 0 ? static_cast<uint64_t>(ns) : 0;
  // Before the bucket: a snapshot must not hold a duration above its maximum.
  uint64_t max = max_ns_.load(std::memory_order_relaxed);
  while (value > max && !max_ns_.compare_exchange_weak(
                            max, value, std::memory_order_relaxed)) {
  }
  Add(&sum_ns_, value);
  Add(&micros_[MicrosBucketOf(value)], 1);
  Add(&buckets_[BucketOf(value)], 1);
}

LatencySnapshot LatencyHistogram::Snapshot() const {
  LatencySnapshot snapshot;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    snapshot.buckets_[i] = buckets_[i].load(std::memory_order_relaxed);
    snapshot.count_ += snapshot.buckets_[i];
  }
  for (size_t i = 0; i < micros_.size(); ++i) {
    snapshot.micros_[i] = micros_[i].load(std::memory_order_relaxed);
  }
  snapshot.sum_ns_ = sum_ns_.load(std::memory_order_relaxed);
  snapshot.max_ns_ = max_ns_.load(std::memory_order_relaxed);
  return snapshot;
}

}  // namespace postcopy
