#include "cmd/control/describe.h"

#include <google/protobuf/util/time_util.h>

#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

// The moment `at_ns` of Clock::Monotonic() by the clock on the wall.
google::protobuf::Timestamp WallTime(int64_t at_ns) {
  using google::protobuf::util::TimeUtil;
  const int64_t ago = Clock::Monotonic()->NowNanos() - at_ns;
  return TimeUtil::GetCurrentTime() - TimeUtil::NanosecondsToDuration(ago);
}

}  // namespace

v1::MigrationState StateOf(MigrationPhase phase) {
  switch (phase) {
    case MigrationPhase::kPreparing:
      return v1::MIGRATION_STATE_PREPARING;
    case MigrationPhase::kPrecopy:
      return v1::MIGRATION_STATE_PRECOPY;
    case MigrationPhase::kSwitching:
      return v1::MIGRATION_STATE_SWITCHING;
    case MigrationPhase::kPostcopy:
      return v1::MIGRATION_STATE_POSTCOPY;
    case MigrationPhase::kPaused:
      return v1::MIGRATION_STATE_PAUSED;
    case MigrationPhase::kRecovering:
      return v1::MIGRATION_STATE_RECOVERING;
    case MigrationPhase::kCompleted:
      return v1::MIGRATION_STATE_COMPLETED;
    case MigrationPhase::kCancelled:
      return v1::MIGRATION_STATE_CANCELLED;
    case MigrationPhase::kFailed:
      return v1::MIGRATION_STATE_FAILED;
  }
  return v1::MIGRATION_STATE_UNSPECIFIED;
}

void DescribeState(MigrationPhase phase, const std::string& message,
                   int64_t phase_since_ns, v1::Migration& migration) {
  migration.set_state(StateOf(phase));
  migration.set_status_message(message);
  *migration.mutable_state_time() = WallTime(phase_since_ns);
}

void DescribeChanges(const std::vector<PhaseChange>& changes,
                     v1::Migration& migration) {
  for (const PhaseChange& change : changes) {
    v1::StateChange& told = *migration.add_state_changes();
    told.set_number(change.number);
    told.set_state(StateOf(change.phase));
    *told.mutable_time() = WallTime(change.at_ns);
    told.set_status_message(change.message);
  }
}

bool NeedsItsDaemon(v1::MigrationState state) {
  switch (state) {
    case v1::MIGRATION_STATE_SWITCHING:
    case v1::MIGRATION_STATE_POSTCOPY:
    case v1::MIGRATION_STATE_PAUSED:
    case v1::MIGRATION_STATE_RECOVERING:
      return true;
    default:
      return false;
  }
}

}  // namespace postcopy
