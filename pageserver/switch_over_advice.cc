#include "pageserver/switch_over_advice.h"

#include <algorithm>
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

}  // namespace

SwitchOverAdvisor::SwitchOverAdvisor(MigrationPolicy policy,
                                     uint32_t rounds_max)
    : policy_(policy),
      rounds_max_(rounds_max == 0 ? kRoundsDefault : rounds_max) {
  if (policy == MigrationPolicy::kPostcopyOnly) {
    Recommend("switch now: the policy is postcopy-only");
  } else {
    advice_.reason = "the first round is not finished";
  }
}

void SwitchOverAdvisor::Recommend(std::string reason) {
  advice_ = {true, std::move(reason)};
}

bool SwitchOverAdvisor::Shrank(PageCount dirty) const {
  return dirty.value() * kShrinkDenominator <
         dirty_before_.value() * kShrinkNumerator;
}

const Advice& SwitchOverAdvisor::AddRound(const RoundFigures& figures) {
  if (advice_.recommended) return advice_;
  // Not figures.round == 1: the lane may have broken in that round.
  const bool first = bytes_per_second_ == 0;
  if (first || figures.sent >= kBandwidthSampleMin) {
    bytes_per_second_ =
        std::max<uint64_t>(PerSecond(figures.sent, figures.nanos), 1);
  }
  const ByteCount dirty = BytesIn(figures.dirty_after);
  const double seconds_left =
      static_cast<double>(dirty.value()) / bytes_per_second_;
  rounds_without_progress_ =
      first || Shrank(figures.dirty_after) ? 0 : rounds_without_progress_ + 1;
  dirty_before_ = figures.dirty_after;

  const std::string what = absl::StrCat(
      ToString(figures.dirty_after), " are dirty after round ", figures.round,
      ", ", absl::StrFormat("%.0f ms", seconds_left * 1e3), " at ",
      MebibytesPerSecond(bytes_per_second_));
  if (seconds_left * kNanosPerSecond <= kDowntimeTargetNanos) {
    Recommend(absl::StrCat("switch now: converged: ", what));
  } else if (rounds_without_progress_ >= 2 &&
             policy_ == MigrationPolicy::kPrecopyThenPostcopy) {
    Recommend(absl::StrCat("switch now: not converging: dirty rate ",
                           MebibytesPerSecond(PerSecond(dirty, figures.nanos)),
                           ": ", what));
  } else if (figures.round >= rounds_max_) {
    Recommend(absl::StrCat("switch now: the limit of ", rounds_max_,
                           " rounds is reached: ", what));
  } else {
    advice_.reason = absl::StrCat("one more round: ", what);
  }
  return advice_;
}

}  // namespace postcopy
