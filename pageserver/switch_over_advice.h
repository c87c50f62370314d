// When more precopy rounds no longer pay.
#ifndef PAGESERVER_SWITCH_OVER_ADVICE_H_
#define PAGESERVER_SWITCH_OVER_ADVICE_H_

#include <cstdint>
#include <string>

#include "dirtytrack/types.h"

namespace postcopy {

enum class MigrationPolicy {
  kPrecopyThenPostcopy,
  kPostcopyOnly,
  kPrecopyOnly
};

// Rounds after which a switch-over is recommended if nothing else was said.
inline constexpr uint32_t kRoundsDefault = 30;

enum class Verdict {
  kWait,
  kConverged,
  kNotConverging,
  kRoundsUsedUp,
  kDeadline,
  kPolicy,
};

// Whether to switch over, and why in a sentence with numbers.
struct Advice {
  bool recommended = false;
  std::string reason;
  Verdict verdict = Verdict::kWait;
};

// What is to be expected, from what was measured; -1: cannot be known yet.
struct Estimate {
  // Of pages, per second: what the guest writes, each page once in a round, and
  // what the lane carries within its limit.
  int64_t dirty_bytes_per_second = -1;
  int64_t bandwidth_bytes_per_second = -1;
  // Until the rest could be sent in kDowntimeTargetNanos, or rounds_max is
  // reached; -1 also if more rounds do not lead there. While the first round
  // goes on, and nobody knows what is written: until its end.
  int64_t remaining_precopy_nanos = -1;
  // The service's part: two acknowledgements, the stale set, and under
  // kPrecopyOnly the rest.
  int64_t downtime_nanos = -1;
  // To fetch all that is unsent now.
  int64_t stall_nanos = -1;
  ByteCount unsent;
};

// What a precopy round came to.
struct RoundFigures {
  // From 1.
  uint32_t round = 0;
  // Data sent, and how long that took with the acknowledgement.
  ByteCount sent;
  int64_t nanos = 0;
  // Pages written since the last look, and how long ago that was; 0: `nanos`.
  PageCount dirty_after;
  int64_t dirty_nanos = 0;
};

// Of which migration; and when more rounds do not pay in any case.
struct AdviceOptions {
  MigrationPolicy policy = MigrationPolicy::kPrecopyThenPostcopy;
  // 0 means kRoundsDefault.
  uint32_t rounds_max = 0;
  PageCount total;
  // Of precopy; 0: none.
  int64_t deadline_nanos = 0;
};

// Looks at round after round. Recommends the switch-over
//
//   converged        when what is dirty could be sent in kDowntimeTargetNanos;
//   not converging   when in two rounds running the guest wrote more than
//                    kShrinkNumerator / kShrinkDenominator of what it had
//                    written before (not under kPrecopyOnly, where more
//                    rounds are the only way to less downtime);
//   rounds used up   after `rounds_max`;
//   deadline         after `deadline_nanos`, also in the middle of a round;
//   at once          under kPostcopyOnly.
//
// Once given, a recommendation stays; the figures go on. Not thread-safe.
class SwitchOverAdvisor {
 public:
  static constexpr int64_t kDowntimeTargetNanos = 50'000'000;
  static constexpr uint64_t kShrinkNumerator = 7;
  static constexpr uint64_t kShrinkDenominator = 10;

  explicit SwitchOverAdvisor(AdviceOptions options);

  const Advice& AddRound(const RoundFigures& figures);
  // `nanos` of precopy are over.
  void AddTime(int64_t nanos);
  // So much of the first round has been sent in `nanos`.
  void AddPart(ByteCount sent, int64_t nanos);
  // An acknowledgement came after `nanos`; the quickest is what the network
  // and the destination need.
  void AddAck(int64_t nanos);
  // What the guest writes is known from elsewhere.
  void SetDirtyRate(uint64_t bytes_per_second) {
    dirty_per_second_ = static_cast<int64_t>(bytes_per_second);
  }

  const Advice& advice() const { return advice_; }
  // With `unsent` yet to be sent, over a lane that is limited to `limit` bytes
  // per second; 0: not.
  Estimate EstimateFor(PageCount unsent, ByteCount limit) const;

 private:
  void Recommend(Verdict verdict, std::string reason);
  bool Shrank(PageCount dirty) const;
  int64_t Bandwidth(ByteCount limit) const;
  int64_t RemainingPrecopy(double bytes, double bandwidth) const;

  const AdviceOptions options_;
  Advice advice_;
  uint64_t bytes_per_second_ = 0;
  uint64_t part_bytes_per_second_ = 0;
  int64_t dirty_per_second_ = -1;
  int64_t ack_nanos_ = -1;
  PageCount dirty_before_;
  int rounds_without_progress_ = 0;
};

}  // namespace postcopy

#endif  // PAGESERVER_SWITCH_OVER_ADVICE_H_
