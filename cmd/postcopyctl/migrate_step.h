// What to do next in a migration: the decisions of `migrate`, without the
// calls.
#ifndef CMD_POSTCOPYCTL_MIGRATE_STEP_H_
#define CMD_POSTCOPYCTL_MIGRATE_STEP_H_

#include "cmd/postcopyctl/migration_board.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

enum class MigrateStep {
  kWait,
  // The source should hand the guest over.
  kSwitchOver,
  // SwitchOver was refused: look at what became of it, then give up.
  kRefused,
  // Both sides are complete.
  kSucceeded,
  // A side ended without being complete.
  kEndedBadly,
  // A side cannot be watched any more.
  kLost,
  // The user wants to stop.
  kInterrupted,
  // The time is over.
  kTimedOut,
};

// What happened on this side of the wire.
struct MigrateSituation {
  v1::MigrationPolicy policy = v1::MIGRATION_POLICY_UNSPECIFIED;
  // SwitchOver has been called and was not answered, or was answered with OK.
  bool switch_over_called = false;
  // SwitchOver may be called once more with the same request id.
  bool may_retry_switch_over = false;
  bool interrupted = false;
  bool expired = false;
};

MigrateStep NextStep(const MigrationView& view,
                     const MigrateSituation& situation);

// True if the guest belongs to the destination, as far as either side says.
bool IsHandedOver(const MigrationView& view);

// One state for both sides: the worse end, or else the further of the two.
v1::MigrationState OverallState(const v1::Migration& source,
                                const v1::Migration& destination);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_MIGRATE_STEP_H_
