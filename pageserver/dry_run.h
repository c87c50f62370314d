// What a migration would meet, measured without beginning one.
#ifndef PAGESERVER_DRY_RUN_H_
#define PAGESERVER_DRY_RUN_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/dirty_source.h"
#include "pageserver/guest_memory.h"
#include "pageserver/source_migration.h"
#include "pageserver/switch_over_advice.h"

namespace postcopy {

// How long the guest's writes are watched.
inline constexpr int64_t kDryRunNanos = 200 * kNanosPerMilli;

// Watches the guest for kDryRunNanos, unless the policy has no rounds, and
// returns what is to be expected; the bandwidth is known only by its limit.
// Tracking is started and stopped: nobody else may use `dirty_source`, and the
// error is its own.
absl::StatusOr<Estimate> DryRun(const GuestMemory& memory,
                                DirtySource* dirty_source,
                                const SourceOptions& options, Clock* clock);

}  // namespace postcopy

#endif  // PAGESERVER_DRY_RUN_H_
