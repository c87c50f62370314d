// One VM on its way, as a flow of bytes.
#ifndef CMD_CAPACITY_VM_FLOW_H_
#define CMD_CAPACITY_VM_FLOW_H_

#include <cstdint>

#include "cmd/capacity/scenario.h"
#include "pageserver/switch_over_advice.h"

namespace postcopy::capacity {

// What became of a VM.
struct VmOutcome {
  double started_s = 0;
  double switched_s = 0;
  double ended_s = 0;
  uint32_t rounds = 0;
  double precopy_bytes = 0;  // page bytes, zeros left out
  double stale_bytes = 0;
  double faulted_bytes = 0;  // of the stale ones, touched before they came
  double downtime_s = 0;
  // Time that vCPUs waited for pages, summed over them.
  double fault_wait_s = 0;
};

// Precopy rounds, switch-over, postcopy. Between two calls of Advance its rate
// is constant; the simulation moves it on to the next event of any VM.
//
//   round n    sends what was dirty when it began (round 1: all but zeros).
//              Meanwhile the guest writes: of the hot set H at rate w, in t
//              seconds, H (1 - exp(-w t / H)) bytes become dirty, and of the
//              rest c t. The next round begins at once, but not within 50 ms.
//   advice     the daemon's own code (SwitchOverAdvisor) after each round.
//   switching  advice_delay, during which the next round goes on; then the
//              guest stands still.
//   postcopy   of the stale bytes m, what is hot is touched at rate w m / H,
//              but not faster than vcpus / fault_latency pages, and comes so;
//              bulk brings the rest at the flow's rate.
class VmFlow {
 public:
  VmFlow(const VmSpec& spec, const Costs& costs, double now_s);

  // Page bytes per second that it would take if nothing but the stream and its
  // own limit held it back; 0: it does not use the network now.
  double wanted_bytes_per_s() const;
  // The rate until the next event. REQUIRES: not more than wanted.
  void SetRate(double bytes_per_s) { rate_ = bytes_per_s; }
  // Seconds until something changes at this rate.
  double NextEvent() const;
  // Moves on by `seconds`, at most NextEvent().
  void Advance(double seconds);

  bool ended() const { return phase_ == Phase::kEnded; }
  const VmOutcome& outcome() const { return outcome_; }

 private:
  enum class Phase {
    kRound,
    kPause,      // between rounds
    kDelay,      // the advice is there, and the next round goes on
    kSwitching,  // the guest stands still
    kPostcopy,
    kEnded,
  };

  void EndRound();
  void BeginRound();
  void EndDelay();
  double DirtiedIn(double seconds) const;
  double FaultsPerSecond() const;    // in bytes, at most
  double TouchesPerMissing() const;  // per second
  double PostcopySeconds() const;
  void AdvancePostcopy(double seconds);

  const VmSpec spec_;
  const Costs costs_;
  SwitchOverAdvisor advisor_;
  VmOutcome outcome_;
  Phase phase_ = Phase::kRound;
  double now_s_;
  double rate_ = 0;
  double left_ = 0;     // bytes of the round, or missing
  double sent_ = 0;     // of the round
  double dirty_ = 0;    // since the round began
  double round_s_ = 0;  // since it began
  double timer_s_ = 0;  // of kPause, kDelay, kSwitching
};

}  // namespace postcopy::capacity

#endif  // CMD_CAPACITY_VM_FLOW_H_
