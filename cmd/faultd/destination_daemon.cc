#include "cmd/faultd/destination_daemon.h"

#include <utility>

namespace postcopy {

DestinationDaemon::DestinationDaemon(const Options& options,
                                     std::unique_ptr<DaemonSecurity> security)
    : security_(std::move(security)),
      sides_({.bulk_share = options.bulk_share,
              .reconnect_nanos =
                  absl::ToInt64Nanoseconds(options.reconnect_timeout)},
             security_->dialling()),
      table_(
          [this](const v1::CreateMigrationRequest& request) {
            return sides_.Create(request);
          },
          [this](const v1::CreateMigrationRequest& request) {
            return sides_.Validate(request);
          },
          [](const std::string& /*migration_id*/) {}),
      control_service_(&table_) {}

absl::StatusOr<std::unique_ptr<DestinationDaemon>> DestinationDaemon::Create(
    const Options& options) {
  auto security =
      DaemonSecurity::ForDestination(options.security, options.control_address);
  if (!security.ok()) return security.status();
  std::unique_ptr<DestinationDaemon> daemon(
      new DestinationDaemon(options, *std::move(security)));
  DestinationDaemon* const self = daemon.get();
  auto vmms = VmmListener::Create(
      {.socket_path = options.vmm_socket,
       .role = VmmRole::kDestination,
       .allowed_uids = {options.vmm_uids.begin(), options.vmm_uids.end()},
       .vms_max = options.vms_max,
       .command_timeout = options.command_timeout,
       .on_attach =
           [self](const std::shared_ptr<VmmConnection>& vmm) {
             return self->sides_.Attach(vmm);
           },
       .on_detach =
           [self](const std::string& name) {
             self->sides_.Detach(name);
             self->table_.VmmGone(name);
           }});
  if (!vmms.ok()) return vmms.status();
  daemon->vmms_ = *std::move(vmms);
  auto control =
      GrpcListener::Create({.address = options.control_address,
                            .security = daemon->security_->control()},
                           {&daemon->control_service_});
  if (!control.ok()) return control.status();
  daemon->control_ = *std::move(control);
  return daemon;
}

void DestinationDaemon::Shutdown() {
  control_service_.StopWatches();
  if (control_ != nullptr) control_->Shutdown();
  // Before the migrations: a VMM that loads its device state may wait for a
  // page that will not come.
  if (vmms_ != nullptr) vmms_->Shutdown();
  table_.StopAll();
}

}  // namespace postcopy
