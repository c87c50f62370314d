// Traces that nobody recorded: made up from patterns.
#ifndef CMD_FAULTREPLAY_SYNTH_H_
#define CMD_FAULTREPLAY_SYNTH_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/trace/trace.h"

namespace postcopy {

// How one touch follows another.
enum class PatternKind {
  kSequential,  // upwards, page by page, each thread in a part of its own
  kStrided,     // the same with gaps; behind the end, once more one page later
  kUniform,     // anywhere
  kZipfian,     // few pages often, most seldom
  kPhased,      // anywhere in a working set, which moves from time to time
};

struct Pattern {
  PatternKind kind = PatternKind::kUniform;
  // Strided: pages from one touch to the next. Zipfian: the exponent, above 0
  // and below 1. Phased: how many working sets one after the other.
  double parameter = 0;
  // Touches of this pattern among those of all.
  double weight = 1;

  friend bool operator==(const Pattern&, const Pattern&) = default;
};

inline constexpr size_t kPatternsMax = 16;
inline constexpr double kStrideMax = 1 << 20;
inline constexpr double kPhasesMax = 1 << 16;
// A working set of kPhased is that part of RAM.
inline constexpr uint64_t kPhasedParts = 16;

// Reads "sequential", "strided:8", "uniform", "zipfian:0.99", "phased:4", or a
// mixture, "3*sequential+zipfian". INVALID_ARGUMENT with a sentence.
absl::StatusOr<std::vector<Pattern>> ParsePatterns(absl::string_view text);

struct SynthOptions {
  // At least one; their weights need no certain sum.
  std::vector<Pattern> patterns;
  PageCount pages{16384};
  // Of all threads together.
  size_t touches = 10000;
  uint32_t threads = 1;
  uint64_t seed = 1;
  // From one touch of a thread to its next.
  uint64_t think_ns = 0;
  // Of 100 touches.
  uint32_t write_percent = 0;
  // Goes into the trace's origin.
  std::string description;
};

// The same options give the same trace. INVALID_ARGUMENT for what breaks a
// limit of traces.
absl::StatusOr<Trace> Synthesize(const SynthOptions& options);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_SYNTH_H_
