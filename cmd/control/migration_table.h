// The migrations of one daemon.
#ifndef CMD_CONTROL_MIGRATION_TABLE_H_
#define CMD_CONTROL_MIGRATION_TABLE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/control/migration_side.h"
#include "cmd/metrics/vm_totals.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// Migrations a daemon knows at a time. The oldest that has ended makes room
// for a new one; if none has, the new one is refused.
inline constexpr size_t kMigrationsMax = 256;

// Bounds of CreateMigrationRequest.
inline constexpr uint64_t kBulkLimitMin = 1 << 20;
inline constexpr uint32_t kRoundsLimitMax = 1000;
inline constexpr uint32_t kDeadlineMsPerGibMax = 3'600'000;
inline constexpr size_t kAddressBytesMax = 512;

// INVALID_ARGUMENT for a limit that is none.
absl::Status CheckBulkLimit(uint64_t bytes_per_second);
// INVALID_ARGUMENT for one that is too long to be a host and a port, or a Unix
// socket.
absl::Status CheckSourceAddress(const std::string& address);

// What a table's migrations counted, for metrics. A value.
struct MigrationTotals {
  // Of all since the daemon began; no counter goes back when a migration is
  // forgotten.
  VmTotals vm;
  // Migrations that the table has, and those that have ended since the daemon
  // began, by state.
  std::array<uint64_t, v1::MigrationState_ARRAYSIZE> present{};
  std::array<uint64_t, v1::MigrationState_ARRAYSIZE> ended{};
  // Calls of Create, and those that were refused.
  uint64_t create_requests = 0;
  uint64_t create_refusals = 0;
};

// Creates, finds and forgets. Thread-safe.
class MigrationTable {
 public:
  // Makes this daemon's side for a request whose ids, policy and limits have
  // been checked. Runs with the table locked.
  using CreateSide =
      std::function<absl::StatusOr<std::shared_ptr<MigrationSide>>(
          const v1::CreateMigrationRequest&)>;
  // Looks at the same, and creates nothing; what it returns is added to what
  // the creator chose. Runs with the VM kept from others, the table not locked.
  using ValidateSide = std::function<absl::StatusOr<v1::Migration>(
      const v1::CreateMigrationRequest&)>;
  // Told of each migration that is forgotten.
  using Forget = std::function<void(const std::string& migration_id)>;

  MigrationTable(CreateSide create_side, ValidateSide validate_side,
                 Forget forget, size_t migrations_max = kMigrationsMax);

  // As MigrationService.CreateMigration.
  absl::StatusOr<v1::Migration> Create(
      const v1::CreateMigrationRequest& request);

  // NOT_FOUND names the id.
  absl::StatusOr<std::shared_ptr<MigrationSide>> Find(
      absl::string_view migration_id) const;
  absl::StatusOr<v1::Migration> Describe(absl::string_view migration_id) const;
  // Without state_changes.
  std::vector<v1::Migration> List() const;
  MigrationTotals Totals() const;

  // Forgets a migration. NOT_FOUND, or FAILED_PRECONDITION if it has not ended.
  absl::Status Delete(absl::string_view migration_id);

  // Refuses new migrations from now on, UNAVAILABLE with `why`, and cancels
  // those that can be cancelled; returns when they are.
  void StopTaking(std::string why);
  // How many have not ended, and for how many of these the guest is handed over
  // or about to be, so that it needs this daemon.
  struct Load {
    size_t running = 0;
    size_t needing = 0;
  };
  Load load() const;
  // Whether all sides show life; see MigrationSide.
  bool AllShowLife();

  // Passes it on to the VM's migration, if one is under way.
  void VmmGone(absl::string_view vm_name);
  // Stops every side, all at once: returns when the last has stopped.
  void StopAll();
  // As MigrationSide::AskToStop.
  void AskAllToStop();

 private:
  struct Entry {
    v1::CreateMigrationRequest request;
    v1::Migration chosen;  // what the creator chose, and create_time
    std::shared_ptr<MigrationSide> side;
  };

  absl::StatusOr<v1::Migration> Validate(
      const v1::CreateMigrationRequest& request);
  absl::StatusOr<v1::Migration> CreateLocked(
      const v1::CreateMigrationRequest& request,
      std::shared_ptr<MigrationSide>& evicted);
  std::vector<std::shared_ptr<MigrationSide>> Sides() const;
  const Entry* FindLocked(absl::string_view migration_id) const;
  absl::Status CheckFreeLocked(const v1::CreateMigrationRequest& request) const;
  // The oldest that has ended, if one must go for another; else the end.
  absl::StatusOr<std::vector<Entry>::iterator> RoomLocked();
  // Takes it out.
  absl::Status MakeRoomLocked(std::shared_ptr<MigrationSide>& evicted);
  static v1::Migration Describe(const Entry& entry);

  const CreateSide create_side_;
  const ValidateSide validate_side_;
  const Forget forget_;
  const size_t migrations_max_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<Entry> entries_;       // oldest first
  std::set<std::string> looked_at_;  // VMs that Validate is about
  MigrationTotals forgotten_;        // of migrations that are not in entries_
  std::string refusal_;              // empty: takes new ones
};

}  // namespace postcopy

#endif  // CMD_CONTROL_MIGRATION_TABLE_H_
