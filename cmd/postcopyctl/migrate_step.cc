#include "cmd/postcopyctl/migrate_step.h"

#include <algorithm>

#include "cmd/postcopyctl/names.h"

namespace postcopy {
namespace {

bool IsCompleted(const SideView& side) {
  return side.migration.state() == v1::MIGRATION_STATE_COMPLETED;
}

bool EndedBadly(const SideView& side) {
  return HasEnded(side.migration.state()) && !IsCompleted(side);
}

// Errors after which nobody knows whether the call had an effect.
bool IsUnclear(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status);
}

bool IsSwitchOverDue(const SideView& source, v1::MigrationPolicy policy) {
  if (source.migration.state() != v1::MIGRATION_STATE_PRECOPY) return false;
  return policy == v1::MIGRATION_POLICY_POSTCOPY_ONLY ||
         source.migration.advice().recommended();
}

MigrateStep SwitchOverStep(const MigrationView& view,
                           const MigrateSituation& situation) {
  if (!view.switch_over.has_value()) {
    bool due = !situation.switch_over_called &&
               IsSwitchOverDue(view.source, situation.policy);
    return due ? MigrateStep::kSwitchOver : MigrateStep::kWait;
  }
  if (view.switch_over->ok()) return MigrateStep::kWait;
  if (!IsUnclear(*view.switch_over)) return MigrateStep::kRefused;
  // Only a source that can be heard and has not begun needs to be asked again.
  if (!view.source.stream.ok() ||
      view.source.migration.state() != v1::MIGRATION_STATE_PRECOPY) {
    return MigrateStep::kWait;
  }
  return situation.may_retry_switch_over ? MigrateStep::kSwitchOver
                                         : MigrateStep::kRefused;
}

}  // namespace

MigrateStep NextStep(const MigrationView& view,
                     const MigrateSituation& situation) {
  if (EndedBadly(view.source) || EndedBadly(view.destination)) {
    return MigrateStep::kEndedBadly;
  }
  if (IsCompleted(view.destination)) {
    // A destination that is complete needs nothing from the source, so a
    // source that is stopped before its last word is no failure.
    bool done = IsCompleted(view.source) || view.source.lost;
    if (done) return MigrateStep::kSucceeded;
  }
  if (situation.interrupted) return MigrateStep::kInterrupted;
  if (situation.expired) return MigrateStep::kTimedOut;
  if (view.source.lost || view.destination.lost) return MigrateStep::kLost;
  return IsHandedOver(view) ? MigrateStep::kWait
                            : SwitchOverStep(view, situation);
}

bool IsHandedOver(const MigrationView& view) {
  return IsHandedOver(view.source.migration.state()) ||
         IsHandedOver(view.destination.migration.state());
}

v1::MigrationState OverallState(const v1::Migration& source,
                                const v1::Migration& destination) {
  for (auto state :
       {v1::MIGRATION_STATE_FAILED, v1::MIGRATION_STATE_CANCELLED}) {
    if (source.state() == state || destination.state() == state) return state;
  }
  // The enum's order is that of a migration's life. The destination alone
  // decides when it is complete.
  v1::MigrationState further = std::max(source.state(), destination.state());
  if (further == v1::MIGRATION_STATE_COMPLETED &&
      destination.state() != v1::MIGRATION_STATE_UNSPECIFIED) {
    return destination.state();
  }
  return further;
}

}  // namespace postcopy
