#include "pageserver/switch_over_advice.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

// Less data than this says more about round trips than about bandwidth.
constexpr ByteCount kBandwidthSampleMin{4 << 20};

std::string MebibytesPerSecond(uint64_t bytes_per_second) {
  return absl::StrFormat("%.0f MiB/s", bytes_per_second / 1048576.0);
}

uint64_t PerSecond(ByteCount bytes, int64_t nanos) {
  return static_cast<uint64_t>(static_cast<__uint128_t>(bytes.value()) *
                               kNanosPerSecond / std::max<int64_t>(nanos, 1));
}

AdviceOptions WithDefaults(AdviceOptions options) {
  if (options.rounds_max == 0) options.rounds_max = kRoundsDefault;
  return options;
}

std::string Seconds(int64_t nanos) {
  return absl::StrFormat("%.1f s",
                         static_cast<double>(nanos) / kNanosPerSecond);
}

// `bytes` at `per_second`, in nanoseconds; at most 292 years.
int64_t NanosFor(double bytes, double per_second) {
  constexpr double kLongest = 9e18;
  return static_cast<int64_t>(
      std::min(bytes / per_second * kNanosPerSecond, kLongest));
}

}  // namespace

SwitchOverAdvisor::SwitchOverAdvisor(AdviceOptions options)
    : options_(WithDefaults(options)) {
  if (options_.policy == MigrationPolicy::kPostcopyOnly) {
    Recommend(Verdict::kPolicy, "switch now: the policy is postcopy-only");
  } else {
    advice_.reason = "the first round is not finished";
  }
}

void SwitchOverAdvisor::Recommend(Verdict verdict, std::string reason) {
  advice_ = {true, std::move(reason), verdict};
}

bool SwitchOverAdvisor::Shrank(PageCount dirty) const {
  return dirty.value() * kShrinkDenominator <
         dirty_before_.value() * kShrinkNumerator;
}

const Advice& SwitchOverAdvisor::AddRound(const RoundFigures& figures) {
  // Not figures.round == 1: the lane may have broken in that round.
  const bool first = bytes_per_second_ == 0;
  if (first || figures.sent >= kBandwidthSampleMin) {
    bytes_per_second_ =
        std::max<uint64_t>(PerSecond(figures.sent, figures.nanos), 1);
  }
  const ByteCount dirty = BytesIn(figures.dirty_after);
  const uint64_t dirty_per_second = PerSecond(
      dirty, figures.dirty_nanos > 0 ? figures.dirty_nanos : figures.nanos);
  SetDirtyRate(dirty_per_second);
  rounds_without_progress_ =
      first || Shrank(figures.dirty_after) ? 0 : rounds_without_progress_ + 1;
  dirty_before_ = figures.dirty_after;
  if (advice_.recommended) return advice_;

  const double seconds_left =
      static_cast<double>(dirty.value()) / bytes_per_second_;
  const std::string what = absl::StrCat(
      ToString(figures.dirty_after), " are dirty after round ", figures.round,
      ", ", absl::StrFormat("%.0f ms", seconds_left * 1e3), " at ",
      MebibytesPerSecond(bytes_per_second_));
  if (seconds_left * kNanosPerSecond <= kDowntimeTargetNanos) {
    Recommend(Verdict::kConverged,
              absl::StrCat("switch now: converged: ", what));
  } else if (rounds_without_progress_ >= 2 &&
             options_.policy == MigrationPolicy::kPrecopyThenPostcopy) {
    const std::string rate = MebibytesPerSecond(dirty_per_second);
    Recommend(Verdict::kNotConverging,
              dirty_per_second > bytes_per_second_
                  ? absl::StrCat("switch now: dirty rate ", rate, " exceeds ",
                                 MebibytesPerSecond(bytes_per_second_),
                                 " bandwidth: ", what)
                  : absl::StrCat("switch now: not converging: dirty rate ",
                                 rate, ": ", what));
  } else if (figures.round >= options_.rounds_max) {
    Recommend(Verdict::kRoundsUsedUp,
              absl::StrCat("switch now: the limit of ", options_.rounds_max,
                           " rounds is reached: ", what));
  } else {
    advice_.reason = absl::StrCat("one more round: ", what);
  }
  return advice_;
}

void SwitchOverAdvisor::AddTime(int64_t nanos) {
  if (advice_.recommended || options_.deadline_nanos == 0 ||
      nanos < options_.deadline_nanos) {
    return;
  }
  Recommend(Verdict::kDeadline,
            absl::StrCat("switch now: ", Seconds(nanos),
                         " of precopy are over, and the deadline is ",
                         Seconds(options_.deadline_nanos)));
}

void SwitchOverAdvisor::AddPart(ByteCount sent, int64_t nanos) {
  if (sent < kBandwidthSampleMin) return;
  part_bytes_per_second_ = std::max<uint64_t>(PerSecond(sent, nanos), 1);
}

void SwitchOverAdvisor::AddAck(int64_t nanos) {
  if (ack_nanos_ < 0 || nanos < ack_nanos_) ack_nanos_ = nanos;
}

int64_t SwitchOverAdvisor::Bandwidth(ByteCount limit) const {
  uint64_t measured =
      bytes_per_second_ != 0 ? bytes_per_second_ : part_bytes_per_second_;
  if (measured == 0) measured = limit.value();
  if (measured == 0) return -1;
  if (!limit.empty()) measured = std::min(measured, limit.value());
  return static_cast<int64_t>(
      std::min<uint64_t>(measured, std::numeric_limits<int64_t>::max()));
}

int64_t SwitchOverAdvisor::RemainingPrecopy(double bytes,
                                            double bandwidth) const {
  if (options_.policy == MigrationPolicy::kPostcopyOnly) return 0;
  const double target = bandwidth * kDowntimeTargetNanos / kNanosPerSecond;
  if (dirty_per_second_ < 0) return NanosFor(bytes, bandwidth);
  if (bytes > target && dirty_per_second_ >= bandwidth) return -1;
  // Each round sends what was written while the one before was sent.
  double sent = 0;
  for (uint32_t round = 0; bytes > target && round < options_.rounds_max;
       ++round) {
    sent += bytes;
    bytes *= dirty_per_second_ / bandwidth;
  }
  return NanosFor(sent, bandwidth);
}

Estimate SwitchOverAdvisor::EstimateFor(PageCount unsent,
                                        ByteCount limit) const {
  Estimate estimate{.dirty_bytes_per_second = dirty_per_second_,
                    .bandwidth_bytes_per_second = Bandwidth(limit),
                    .unsent = BytesIn(unsent)};
  const bool rest_is_stale = options_.policy != MigrationPolicy::kPrecopyOnly;
  if (!rest_is_stale) estimate.stall_nanos = 0;
  if (estimate.bandwidth_bytes_per_second <= 0) return estimate;
  const auto bandwidth =
      static_cast<double>(estimate.bandwidth_bytes_per_second);
  const auto bytes = static_cast<double>(estimate.unsent.value());
  estimate.remaining_precopy_nanos = RemainingPrecopy(bytes, bandwidth);
  if (rest_is_stale) estimate.stall_nanos = NanosFor(bytes, bandwidth);
  if (ack_nanos_ < 0) return estimate;
  const double stopped =
      rest_is_stale ? static_cast<double>(options_.total.value()) / 8 : bytes;
  estimate.downtime_nanos = 2 * ack_nanos_ + NanosFor(stopped, bandwidth);
  return estimate;
}

}  // namespace postcopy
