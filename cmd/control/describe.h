// Pieces of a Migration resource that both daemons fill in.
#ifndef CMD_CONTROL_DESCRIBE_H_
#define CMD_CONTROL_DESCRIBE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "dirtytrack/migration_phase.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

v1::MigrationState StateOf(MigrationPhase phase);

// Sets state, status_message and state_time, which is from a moment on
// Clock::Monotonic().
void DescribeState(MigrationPhase phase, const std::string& message,
                   int64_t phase_since_ns, v1::Migration& migration);

// Sets state_changes.
void DescribeChanges(const std::vector<PhaseChange>& changes,
                     v1::Migration& migration);

// Whether a guest would wait for ever for missing pages if this side's daemon
// ended in `state`: it is handed over, or may be any moment.
bool NeedsItsDaemon(v1::MigrationState state);

}  // namespace postcopy

#endif  // CMD_CONTROL_DESCRIBE_H_
