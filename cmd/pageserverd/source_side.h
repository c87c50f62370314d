// The source's side of migrations: ties a VM that is attached to the core and
// to the control plane.
#ifndef CMD_PAGESERVERD_SOURCE_SIDE_H_
#define CMD_PAGESERVERD_SOURCE_SIDE_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "cmd/control/migration_side.h"
#include "cmd/log/log.h"
#include "cmd/pageserverd/dirty_tracking.h"
#include "cmd/vmm_channel/vmm_connection.h"
#include "dirtytrack/clock.h"
#include "pageserver/guest_memory.h"
#include "pageserver/session_directory.h"
#include "pageserver/source_migration.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// What a deadline is if a source that switches over by itself is given none:
// three passes over all RAM at 1 Gbit/s.
inline constexpr int64_t kAutoDeadlineNanosPerGib = 30 * kNanosPerSecond;

// Creates the source's sides. Create: one thread at a time; Validate: any.
class SourceSides {
 public:
  // The attached VM of a name, or null.
  using FindVm =
      std::function<std::shared_ptr<VmmConnection>(const std::string&)>;

  // `directory` outlives this; what is created is added to it. `options` are
  // those that no request overrides. `log` may be null, and outlives this and
  // what it creates.
  SourceSides(FindVm find_vm, SessionDirectory* directory,
              SourceOptions options, Log* log)
      : find_vm_(std::move(find_vm)),
        directory_(directory),
        options_(std::move(options)),
        log_(log) {}

  // As MigrationTable::CreateSide. NOT_FOUND if the VM is not attached,
  // FAILED_PRECONDITION if it has been handed over before.
  absl::StatusOr<std::shared_ptr<MigrationSide>> Create(
      const v1::CreateMigrationRequest& request);
  // As MigrationTable::ValidateSide: the same checks, and an estimate.
  absl::StatusOr<v1::Migration> Validate(
      const v1::CreateMigrationRequest& request) const;

 private:
  // All that a migration is made of.
  struct Parts {
    std::shared_ptr<VmmConnection> vmm;
    std::unique_ptr<GuestMemory> memory;
    ChosenDirtySource tracking;
    SourceOptions options;
  };

  absl::StatusOr<Parts> Gather(const v1::CreateMigrationRequest& request) const;

  const FindVm find_vm_;
  SessionDirectory* const directory_;
  const SourceOptions options_;
  Log* const log_;
};

}  // namespace postcopy

#endif  // CMD_PAGESERVERD_SOURCE_SIDE_H_
