#include "cmd/faultreplay/synth.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cmd/trace/trace_check.h"

namespace postcopy {
namespace {

// splitmix64: the same numbers everywhere, which no distribution of the
// standard library promises.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
  }
  // In [0, 1).
  double Fraction() {
    return static_cast<double>(Next() >> 11) / 9007199254740992.0;
  }
  // In [0, end).
  uint64_t Below(uint64_t end) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(Next()) * end >>
                                 64);
  }

 private:
  uint64_t state_;
};

// One thread's way through one pattern.
class Walk {
 public:
  virtual ~Walk() = default;
  // `progress` is how much of the trace is over, from 0 to below 1.
  virtual uint64_t Next(Random& random, double progress) = 0;
};

class StridedWalk final : public Walk {
 public:
  // In the pages [first, first + length).
  StridedWalk(uint64_t first, uint64_t length, uint64_t stride)
      : first_(first), length_(length), stride_(std::min(stride, length)) {}

  uint64_t Next(Random&, double) override {
    const uint64_t at = at_;
    at_ += stride_;
    if (at_ >= length_) {
      start_ = (start_ + 1) % stride_;
      at_ = start_;
    }
    return first_ + at;
  }

 private:
  const uint64_t first_;
  const uint64_t length_;
  const uint64_t stride_;
  uint64_t start_ = 0;
  uint64_t at_ = 0;
};

class UniformWalk final : public Walk {
 public:
  explicit UniformWalk(uint64_t pages) : pages_(pages) {}
  uint64_t Next(Random& random, double) override {
    return random.Below(pages_);
  }

 private:
  const uint64_t pages_;
};

// Which page is which rank: scattered, so that hot pages are no neighbours.
class Scatter {
 public:
  explicit Scatter(uint64_t pages) : pages_(pages) {
    while (std::gcd(factor_, pages_) != 1) ++factor_;
  }
  uint64_t PageOf(uint64_t rank) const {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(rank) *
                                 factor_ % pages_);
  }

 private:
  const uint64_t pages_;
  uint64_t factor_ = 2654435761;
};

// Rank r comes in proportion to 1 / (r + 1)^exponent, by the approximation of
// Gray et al., "Quickly generating billion-record synthetic databases" (1994).
class ZipfianWalk final : public Walk {
 public:
  ZipfianWalk(uint64_t pages, double exponent)
      : pages_(pages),
        exponent_(exponent),
        scatter_(pages),
        zeta_(Zeta(pages)),
        alpha_(1 / (1 - exponent)),
        eta_((1 - std::pow(2.0 / static_cast<double>(pages), 1 - exponent)) /
             (1 - Zeta(std::min<uint64_t>(pages, 2)) / zeta_)) {}

  uint64_t Next(Random& random, double) override {
    const double u = random.Fraction();
    const double uz = u * zeta_;
    if (uz < 1 || pages_ == 1) return scatter_.PageOf(0);
    if (uz < 1 + std::pow(0.5, exponent_) || pages_ == 2) {
      return scatter_.PageOf(1);
    }
    const double rank =
        static_cast<double>(pages_) * std::pow(eta_ * u - eta_ + 1, alpha_);
    return scatter_.PageOf(
        std::min(static_cast<uint64_t>(std::max(rank, 0.0)), pages_ - 1));
  }

 private:
  double Zeta(uint64_t n) const {
    // The sum's head, and an integral for the rest: RAM may have 2^32 pages.
    constexpr uint64_t kExact = 1 << 20;
    double sum = 0;
    for (uint64_t i = 1; i <= std::min(n, kExact); ++i) {
      sum += 1 / std::pow(static_cast<double>(i), exponent_);
    }
    if (n <= kExact) return sum;
    const double power = 1 - exponent_;
    return sum + (std::pow(static_cast<double>(n), power) -
                  std::pow(static_cast<double>(kExact), power)) /
                     power;
  }

  const uint64_t pages_;
  const double exponent_;
  const Scatter scatter_;
  const double zeta_;
  const double alpha_;
  const double eta_;
};

class PhasedWalk final : public Walk {
 public:
  PhasedWalk(uint64_t pages, uint64_t phases)
      : pages_(pages),
        set_(std::max<uint64_t>(pages / kPhasedParts, 1)),
        phases_(phases) {}

  uint64_t Next(Random& random, double progress) override {
    const auto phase =
        static_cast<uint64_t>(progress * static_cast<double>(phases_));
    // Where a set lies depends on its number, so that threads share it.
    const uint64_t first = Random(phase).Below(pages_ - set_ + 1);
    return first + random.Below(set_);
  }

 private:
  const uint64_t pages_;
  const uint64_t set_;
  const uint64_t phases_;
};

std::unique_ptr<Walk> NewWalk(const Pattern& pattern, uint64_t pages,
                              uint32_t thread, uint32_t threads) {
  const uint64_t part = std::max<uint64_t>(pages / threads, 1);
  const uint64_t first = std::min(part * thread, pages - part);
  switch (pattern.kind) {
    case PatternKind::kSequential:
      return std::make_unique<StridedWalk>(first, part, 1);
    case PatternKind::kStrided:
      return std::make_unique<StridedWalk>(
          first, part, static_cast<uint64_t>(pattern.parameter));
    case PatternKind::kUniform:
      return std::make_unique<UniformWalk>(pages);
    case PatternKind::kZipfian:
      return std::make_unique<ZipfianWalk>(pages, pattern.parameter);
    case PatternKind::kPhased:
      break;
  }
  return std::make_unique<PhasedWalk>(pages,
                                      static_cast<uint64_t>(pattern.parameter));
}

// One thread of the mixture.
class Thread {
 public:
  Thread(const SynthOptions& options, uint32_t index)
      : options_(options),
        index_(index),
        random_(Random(options.seed * 1000003 + index).Next()) {
    for (const Pattern& pattern : options.patterns) {
      weights_ += pattern.weight;
      walks_.push_back(
          NewWalk(pattern, options.pages.value(), index, options.threads));
    }
  }

  // The thread's touch number `touch` of `touches`.
  TraceEvent Next(size_t touch, size_t touches) {
    const double progress =
        static_cast<double>(touch) / static_cast<double>(touches);
    Walk& walk = *walks_[Choose()];
    TraceEvent event;
    // Threads do not all touch in the same nanosecond.
    event.time_ns = touch * std::max<uint64_t>(options_.think_ns, 1) +
                    options_.think_ns * index_ / options_.threads;
    event.page = PageIndex(walk.Next(random_, progress));
    event.thread = index_;
    const bool write = random_.Below(100) < options_.write_percent;
    event.kind = write ? TouchKind::kWrite : TouchKind::kRead;
    return event;
  }

 private:
  size_t Choose() {
    double at = random_.Fraction() * weights_;
    for (size_t i = 0; i + 1 < walks_.size(); ++i) {
      at -= options_.patterns[i].weight;
      if (at < 0) return i;
    }
    return walks_.size() - 1;
  }

  const SynthOptions& options_;
  const uint32_t index_;
  Random random_;
  double weights_ = 0;
  std::vector<std::unique_ptr<Walk>> walks_;
};

absl::Status BadPattern(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("pattern \"", text, "\": ", why));
}

// A pattern's name, its parameter's default and range. No parameter: all 0.
struct PatternRow {
  absl::string_view name;
  PatternKind kind;
  double parameter, min, max;
};
constexpr PatternRow kPatterns[] = {
    {"sequential", PatternKind::kSequential, 0, 0, 0},
    {"strided", PatternKind::kStrided, 8, 1, kStrideMax},
    {"uniform", PatternKind::kUniform, 0, 0, 0},
    {"zipfian", PatternKind::kZipfian, 0.99, 0.01, 0.999},
    {"phased", PatternKind::kPhased, 4, 1, kPhasesMax},
};

absl::StatusOr<Pattern> ParsePattern(absl::string_view text) {
  Pattern pattern;
  absl::string_view name = text;
  const size_t star = name.find('*');
  if (star != absl::string_view::npos) {
    if (!absl::SimpleAtod(name.substr(0, star), &pattern.weight) ||
        !(pattern.weight > 0 && pattern.weight <= 1e6)) {
      return BadPattern(text, "its weight is no number from 0 to 1000000");
    }
    name.remove_prefix(star + 1);
  }
  const size_t colon = name.find(':');
  for (const PatternRow& row : kPatterns) {
    if (row.name != name.substr(0, colon)) continue;
    pattern.kind = row.kind;
    pattern.parameter = row.parameter;
    if (colon == absl::string_view::npos) return pattern;
    if (row.max == 0) return BadPattern(text, "it takes no number");
    if (!absl::SimpleAtod(name.substr(colon + 1), &pattern.parameter) ||
        !(pattern.parameter >= row.min && pattern.parameter <= row.max)) {
      return BadPattern(text, absl::StrCat("its number is not from ", row.min,
                                           " to ", row.max));
    }
    return pattern;
  }
  return BadPattern(
      text, "there are sequential, strided, uniform, zipfian and phased");
}

}  // namespace

absl::StatusOr<std::vector<Pattern>> ParsePatterns(absl::string_view text) {
  std::vector<Pattern> patterns;
  for (absl::string_view part : absl::StrSplit(text, '+')) {
    absl::StatusOr<Pattern> pattern = ParsePattern(part);
    if (!pattern.ok()) return pattern.status();
    patterns.push_back(*pattern);
  }
  if (patterns.size() <= kPatternsMax) return patterns;
  return absl::InvalidArgumentError(
      absl::StrCat("a mixture has at most ", kPatternsMax, " patterns"));
}

absl::StatusOr<Trace> Synthesize(const SynthOptions& options) {
  Trace trace = {.pages = options.pages, .origin = options.description};
  absl::Status status =
      CheckTraceHeader(options.pages.value(), options.description);
  if (!status.ok()) return status;
  if (options.patterns.empty() || options.threads == 0 ||
      options.threads > kTraceThreadsMax || options.touches == 0 ||
      options.touches > kTraceEventsMax || options.write_percent > 100) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a trace is made with 1 to ", kTraceThreadsMax, " threads, 1 to ",
        kTraceEventsMax, " touches and 0 to 100 percent of writes"));
  }
  const size_t each = (options.touches + options.threads - 1) / options.threads;
  if (options.think_ns > kTraceTimeNanosMax / (each + 1)) {
    return absl::InvalidArgumentError("that trace would last 104 days or more");
  }
  std::vector<Thread> threads;
  threads.reserve(options.threads);
  for (uint32_t i = 0; i < options.threads; ++i)
    threads.emplace_back(options, i);
  for (size_t i = 0; i < options.touches; ++i) {
    trace.events.push_back(
        threads[i % options.threads].Next(i / options.threads, each));
  }
  return trace;
}

}  // namespace postcopy
