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

// Whether to switch over, and why in a sentence with numbers.
struct Advice {
  bool recommended = false;
  std::string reason;
};

// What a precopy round came to.
struct RoundFigures {
  // From 1.
  uint32_t round = 0;
  // Data sent, and how long that took with the acknowledgement.
  ByteCount sent;
  int64_t nanos = 0;
  // Pages written during it.
  PageCount dirty_after;
};

// Looks at round after round. Recommends the switch-over
//
//   converged        when what is dirty could be sent in kDowntimeTargetNanos;
//   not converging   when in two rounds running the guest wrote more than
//                    kShrinkNumerator / kShrinkDenominator of what it had
//                    written before (not under kPrecopyOnly, where more
//                    rounds are the only way to less downtime);
//   rounds used up   after `rounds_max`;
//   at once          under kPostcopyOnly.
//
// Once given, a recommendation stays. Not thread-safe.
class SwitchOverAdvisor {
 public:
  static constexpr int64_t kDowntimeTargetNanos = 50'000'000;
  static constexpr uint64_t kShrinkNumerator = 7;
  static constexpr uint64_t kShrinkDenominator = 10;

  // `rounds_max` of 0 means kRoundsDefault.
  SwitchOverAdvisor(MigrationPolicy policy, uint32_t rounds_max);

  const Advice& AddRound(const RoundFigures& figures);
  const Advice& advice() const { return advice_; }

 private:
  void Recommend(std::string reason);
  bool Shrank(PageCount dirty) const;

  const MigrationPolicy policy_;
  const uint32_t rounds_max_;
  Advice advice_;
  uint64_t bytes_per_second_ = 0;
  PageCount dirty_before_;
  int rounds_without_progress_ = 0;
};

}  // namespace postcopy

#endif  // PAGESERVER_SWITCH_OVER_ADVICE_H_
