// One daemon's side of one migration, as the control plane sees it.
#ifndef CMD_CONTROL_MIGRATION_SIDE_H_
#define CMD_CONTROL_MIGRATION_SIDE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "cmd/metrics/vm_totals.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// What one side counts for metrics.
struct SideTotals {
  v1::MigrationState state = v1::MIGRATION_STATE_UNSPECIFIED;
  VmTotals vm;
};

// Thread-safe.
class MigrationSide {
 public:
  virtual ~MigrationSide() = default;

  // Fills in all of `migration` but what the creator of the migration chose
  // (ids, policy) and create_time.
  virtual void Describe(v1::Migration& migration) const = 0;

  // For metrics: cheaper than Describe. No counter of it ever goes back. A side
  // that counts nothing need not say so.
  virtual SideTotals Totals() const { return {}; }

  // True if its state will not change any more.
  virtual bool ended() const = 0;

  // As the calls of MigrationService. Recover's address may be empty; limits
  // and addresses have been checked.
  virtual absl::Status SwitchOver() = 0;
  virtual absl::Status Cancel() = 0;
  virtual absl::Status Pause() = 0;
  virtual absl::Status Recover(const std::string& source_address) = 0;
  virtual absl::Status SetBulkLimit(uint64_t bytes_per_second) = 0;
  virtual absl::Status Abandon() = 0;
  // OK if it may be forgotten: it has ended.
  virtual absl::Status MayDelete() const = 0;

  // The VMM's connection ended. Does not block.
  virtual void VmmGone() = 0;

  // Ends whatever runs, for the end of the daemon. Nothing is decided by it.
  virtual void Stop() = 0;
  // Stop will follow: ends calls of the above that would wait until then. Does
  // not block.
  virtual void AskToStop() {}

  // False if a thread that the guest depends on has not come round since the
  // last call. By one thread at a time.
  virtual bool ShowsLife() { return true; }

  // Counts changes of state and message.
  virtual uint64_t version() const = 0;
  // Returns when version() differs from `seen`, or after `nanos`.
  virtual void WaitForChange(uint64_t seen, int64_t nanos) const = 0;
};

}  // namespace postcopy

#endif  // CMD_CONTROL_MIGRATION_SIDE_H_
