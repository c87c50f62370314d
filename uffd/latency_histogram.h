// A histogram of durations for the fault path: fixed memory, no lock.
#ifndef UFFD_LATENCY_HISTOGRAM_H_
#define UFFD_LATENCY_HISTOGRAM_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace postcopy {

// What a LatencyHistogram held at some moment. A value.
class LatencySnapshot {
 public:
  // Each octave [2^e, 2^(e+1)) ns is cut into this many equal buckets; below
  // it each nanosecond has its own.
  static constexpr size_t kSubBuckets = 16;
  static constexpr size_t kBuckets = (64 - 4 + 1) * kSubBuckets;
  static constexpr size_t kMicrosBuckets = 32;

  // How many durations were recorded.
  uint64_t count() const { return count_; }
  // Their sum, in nanoseconds; wraps after 584 years of waiting.
  uint64_t sum_ns() const { return sum_ns_; }
  // The longest, exactly; 0 if there is none.
  uint64_t max_ns() const { return max_ns_; }

  // A value v with t <= v <= t + t / 16, where t is the smallest recorded
  // duration that at least `percent` of all do not exceed. 0 if there is none.
  // REQUIRES: 0 < percent <= 100.
  uint64_t PercentileNs(double percent) const;

  // How many durations of [2^i, 2^(i+1)) microseconds there were, exactly;
  // bucket 0 has [0, 2) us and the last all that are longer. The buckets of
  // QEMU's postcopy-latency-dist, so that the two compare.
  const std::array<uint64_t, kMicrosBuckets>& micros_buckets() const {
    return micros_;
  }

 private:
  friend class LatencyHistogram;

  uint64_t count_ = 0;
  uint64_t sum_ns_ = 0;
  uint64_t max_ns_ = 0;
  std::array<uint64_t, kBuckets> buckets_{};
  std::array<uint64_t, kMicrosBuckets> micros_{};
};

// Thread-safe, lock-free, 8 KiB.
class LatencyHistogram {
 public:
  // Adds one duration in nanoseconds; negative ones count as 0. A few relaxed
  // additions: orders nothing.
  void Record(int64_t ns);

  // What was recorded. Beside concurrent Records the fields may disagree by
  // those that are under way.
  LatencySnapshot Snapshot() const;

 private:
  std::atomic<uint64_t> sum_ns_{0};
  std::atomic<uint64_t> max_ns_{0};
  std::array<std::atomic<uint64_t>, LatencySnapshot::kBuckets> buckets_{};
  std::array<std::atomic<uint64_t>, LatencySnapshot::kMicrosBuckets> micros_{};
};

}  // namespace postcopy

#endif  // UFFD_LATENCY_HISTOGRAM_H_
