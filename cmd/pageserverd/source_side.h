// The source's side of migrations: ties a VM that is attached to the core and
// to the control plane.
#ifndef CMD_PAGESERVERD_SOURCE_SIDE_H_
#define CMD_PAGESERVERD_SOURCE_SIDE_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cmd/control/migration_side.h"
#include "cmd/vmm_channel/vmm_connection.h"
#include "dirtytrack/dirty_source.h"
#include "pageserver/session_directory.h"
#include "pageserver/source_migration.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// Creates the source's sides. One thread at a time.
class SourceSides {
 public:
  // The attached VM of a name, or null.
  using FindVm =
      std::function<std::shared_ptr<VmmConnection>(const std::string&)>;

  // `directory` outlives this; what is created is added to it. `options` are
  // those that no request overrides.
  SourceSides(FindVm find_vm, SessionDirectory* directory,
              SourceOptions options)
      : find_vm_(std::move(find_vm)),
        directory_(directory),
        options_(options) {}

  // As MigrationTable::CreateSide. NOT_FOUND if the VM is not attached,
  // FAILED_PRECONDITION if it has been handed over before.
  absl::StatusOr<std::shared_ptr<MigrationSide>> Create(
      const v1::CreateMigrationRequest& request);

 private:
  // `source` is where it learns of dirty pages.
  absl::StatusOr<std::shared_ptr<SourceMigration>> NewMigration(
      const v1::CreateMigrationRequest& request,
      const std::shared_ptr<VmmConnection>& vmm,
      std::unique_ptr<DirtySource> source);

  const FindVm find_vm_;
  SessionDirectory* const directory_;
  const SourceOptions options_;
};

}  // namespace postcopy

#endif  // CMD_PAGESERVERD_SOURCE_SIDE_H_
