#include "cmd/capacity/vm_flow.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"

namespace postcopy::capacity {
namespace {

constexpr double kPageBytes = 4096;
// SourceOptions::round_nanos_min.
constexpr double kRoundSecondsMin = 0.05;
// Less than a byte is rounding.
constexpr double kNothing = 0.5;

}  // namespace

VmFlow::VmFlow(const VmSpec& spec, const Costs& costs, double now_s)
    : spec_(spec),
      costs_(costs),
      advisor_({.total = PageCount(
                    static_cast<uint64_t>(spec.ram_bytes / kPageBytes))}),
      now_s_(now_s) {
  outcome_.started_s = now_s;
  dirty_ = spec.ram_bytes * (1 - spec.zero_fraction);
  BeginRound();
}

double VmFlow::wanted_bytes_per_s() const {
  if (phase_ != Phase::kRound && phase_ != Phase::kDelay &&
      phase_ != Phase::kPostcopy) {
    return 0;
  }
  const double most = costs_.stream_bytes_per_s_max;
  // The daemon counts what is on the wire.
  return spec_.bulk_limit_bytes_per_s == 0
             ? most
             : std::min(most,
                        spec_.bulk_limit_bytes_per_s / costs_.wire_fraction);
}

double VmFlow::DirtiedIn(double seconds) const {
  const double hot =
      spec_.hot_bytes *
      (1 - std::exp(-spec_.hot_write_bytes_per_s * seconds / spec_.hot_bytes));
  const double cold = spec_.cold_write_bytes_per_s * seconds;
  return std::min(hot + cold, spec_.ram_bytes);
}

void VmFlow::BeginRound() {
  ++outcome_.rounds;
  left_ = dirty_;
  sent_ = 0;
  round_s_ = 0;
  phase_ = Phase::kRound;
}

void VmFlow::EndRound() {
  dirty_ = DirtiedIn(round_s_);
  const Advice& advice = advisor_.AddRound(
      {.round = outcome_.rounds,
       .sent = ByteCount(static_cast<uint64_t>(sent_)),
       .nanos = static_cast<int64_t>(round_s_ * kNanosPerSecond),
       .dirty_after = PageCount(static_cast<uint64_t>(dirty_ / kPageBytes))});
  if (!advice.recommended) {
    if (round_s_ >= kRoundSecondsMin) return BeginRound();
    phase_ = Phase::kPause;
    timer_s_ = kRoundSecondsMin - round_s_;
    return;
  }
  BeginRound();
  phase_ = Phase::kDelay;
  timer_s_ = costs_.advice_delay_s;
}

// The round is cut short: what it did not send is stale, and what the guest has
// written meanwhile, which is some of it again.
void VmFlow::EndDelay() {
  const double unsent = std::max(left_, 0.0);
  const double again =
      std::min(unsent / std::max(spec_.hot_bytes, unsent), 1.0);
  outcome_.stale_bytes = unsent + DirtiedIn(round_s_) * (1 - again);
  outcome_.downtime_s = costs_.downtime_s + outcome_.stale_bytes / kPageBytes *
                                                costs_.discard_s_per_page;
  phase_ = Phase::kSwitching;
  timer_s_ = outcome_.downtime_s;
}

double VmFlow::FaultsPerSecond() const {
  return spec_.vcpus * kPageBytes / costs_.fault_latency_s;
}

double VmFlow::TouchesPerMissing() const {
  return spec_.hot_write_bytes_per_s / spec_.hot_bytes;
}

// dm/dt = -(rate + min(touches m, faults)): first straight, then exponential.
double VmFlow::PostcopySeconds() const {
  if (left_ <= kNothing) return 0;
  if (rate_ <= 0) return std::numeric_limits<double>::infinity();
  const double touches = TouchesPerMissing();
  if (touches <= 0) return left_ / rate_;
  const double bend = FaultsPerSecond() / touches;
  double seconds = 0;
  double missing = left_;
  if (missing > bend) {
    seconds = (missing - bend) / (rate_ + FaultsPerSecond());
    missing = bend;
  }
  return seconds + std::log1p(touches * missing / rate_) / touches;
}

void VmFlow::AdvancePostcopy(double seconds) {
  const double before = left_;
  const double touches = TouchesPerMissing();
  const double bend = touches > 0 ? FaultsPerSecond() / touches
                                  : std::numeric_limits<double>::infinity();
  double rest = seconds;
  if (touches > 0 && left_ > bend) {
    const double straight =
        std::min(rest, (left_ - bend) / (rate_ + FaultsPerSecond()));
    left_ -= straight * (rate_ + FaultsPerSecond());
    rest -= straight;
  }
  if (touches > 0) {
    left_ =
        (left_ + rate_ / touches) * std::exp(-touches * rest) - rate_ / touches;
  } else {
    left_ -= rate_ * rest;
  }
  left_ = std::max(left_, 0.0);
  const double faulted = std::max(before - left_ - rate_ * seconds, 0.0);
  outcome_.faulted_bytes += faulted;
  outcome_.fault_wait_s += faulted / kPageBytes * costs_.fault_latency_s;
}

double VmFlow::NextEvent() const {
  switch (phase_) {
    case Phase::kRound:
      if (left_ <= kNothing) return 0;
      return rate_ > 0 ? left_ / rate_
                       : std::numeric_limits<double>::infinity();
    case Phase::kPause:
    case Phase::kDelay:
    case Phase::kSwitching:
      return timer_s_;
    case Phase::kPostcopy:
      return PostcopySeconds();
    case Phase::kEnded:
      return std::numeric_limits<double>::infinity();
  }
  return 0;
}

void VmFlow::Advance(double seconds) {
  const bool happens = seconds >= NextEvent();
  now_s_ += seconds;
  round_s_ += seconds;
  timer_s_ -= seconds;
  switch (phase_) {
    case Phase::kRound:
    case Phase::kDelay: {
      const double sent = std::min(rate_ * seconds, std::max(left_, 0.0));
      left_ -= sent;
      sent_ += sent;
      outcome_.precopy_bytes += sent;
      if (!happens) return;
      return phase_ == Phase::kRound ? EndRound() : EndDelay();
    }
    case Phase::kPause:
      if (!happens) return;
      dirty_ = DirtiedIn(round_s_);
      return BeginRound();
    case Phase::kSwitching:
      if (!happens) return;
      outcome_.switched_s = now_s_;
      left_ = outcome_.stale_bytes;
      phase_ = Phase::kPostcopy;
      return;
    case Phase::kPostcopy:
      AdvancePostcopy(seconds);
      if (!happens) return;
      outcome_.ended_s = now_s_;
      phase_ = Phase::kEnded;
      return;
    case Phase::kEnded:
      return;
  }
}

}  // namespace postcopy::capacity
