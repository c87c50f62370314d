// The destination's side of migrations: ties a VM that is attached to the core
// and to the control plane.
#ifndef CMD_FAULTD_DESTINATION_SIDE_H_
#define CMD_FAULTD_DESTINATION_SIDE_H_

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/control/migration_side.h"
#include "cmd/faultd/fault_recorder.h"
#include "cmd/log/log.h"
#include "cmd/security/client_security.h"
#include "cmd/vmm_channel/vmm_connection.h"
#include "postcopy/v1/migration.pb.h"
#include "uffd/destination_migration.h"
#include "uffd/destination_vm.h"

namespace postcopy {

// The VMs that wait for their content, and the sides created for them.
// Thread-safe.
class DestinationSides {
 public:
  // `options` are those that no request overrides; sources are dialled by
  // `dialling`. `recorder`, which outlives this, records every VM; `log`
  // outlives this and what it creates. Both may be null.
  DestinationSides(DestinationOptions options, ClientSecurity dialling,
                   FaultRecorder* recorder, Log* log)
      : options_(std::move(options)),
        dialling_(std::move(dialling)),
        recorder_(recorder),
        log_(log) {}

  // A VM attached: registers its memory, so that every touch of it waits until
  // it is served. The error is for the VMM: what it must change.
  absl::Status Attach(const std::shared_ptr<VmmConnection>& vmm);
  // A VM's connection ended.
  void Detach(const std::string& vm_name);

  // As MigrationTable::CreateSide. NOT_FOUND if the VM is not attached,
  // FAILED_PRECONDITION if a migration has already used its memory.
  absl::StatusOr<std::shared_ptr<MigrationSide>> Create(
      const v1::CreateMigrationRequest& request);
  // As MigrationTable::ValidateSide: the same checks.
  absl::StatusOr<v1::Migration> Validate(
      const v1::CreateMigrationRequest& request);

 private:
  struct Waiting {
    std::shared_ptr<VmmConnection> vmm;
    std::unique_ptr<DestinationVm> vm;  // null once a migration has it
  };

  // The VM, if a migration may be created for it.
  absl::StatusOr<Waiting*> FindLocked(
      const v1::CreateMigrationRequest& request);

  const DestinationOptions options_;
  const ClientSecurity dialling_;
  FaultRecorder* const recorder_;
  Log* const log_;
  std::mutex mutex_;
  std::map<std::string, Waiting> waiting_;  // guarded by mutex_
};

}  // namespace postcopy

#endif  // CMD_FAULTD_DESTINATION_SIDE_H_
