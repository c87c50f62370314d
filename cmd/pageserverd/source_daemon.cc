#include "cmd/pageserverd/source_daemon.h"

#include <utility>

#include "dirtytrack/clock.h"

namespace postcopy {

SourceDaemon::SourceDaemon(const Options& options,
                           std::unique_ptr<DaemonSecurity> security)
    : security_(std::move(security)),
      snapshots_(Clock::Monotonic()),
      sides_([this](const std::string& name) { return vmms_->Find(name); },
             &directory_,
             {.reconnect_nanos =
                  absl::ToInt64Nanoseconds(options.reconnect_timeout)}),
      table_(
          [this](const v1::CreateMigrationRequest& request) {
            return sides_.Create(request);
          },
          [this](const v1::CreateMigrationRequest& request) {
            return sides_.Validate(request);
          },
          [this](const std::string& id) { directory_.Remove(id); }),
      control_service_(&table_),
      data_service_(&directory_, &snapshots_) {}

absl::StatusOr<std::unique_ptr<SourceDaemon>> SourceDaemon::Create(
    const Options& options) {
  auto security = DaemonSecurity::ForSource(
      options.security, options.control_address, options.data_address);
  if (!security.ok()) return security.status();
  std::unique_ptr<SourceDaemon> daemon(
      new SourceDaemon(options, *std::move(security)));
  SourceDaemon* const self = daemon.get();
  for (const NamedFile& file : options.snapshots) {
    auto snapshot = ServedSnapshot::Open(file.name, file.path);
    if (!snapshot.ok()) return snapshot.status();
    absl::Status added = daemon->snapshots_.Add(*std::move(snapshot));
    if (!added.ok()) return added;
  }
  auto vmms = VmmListener::Create(
      {.socket_path = options.vmm_socket,
       .role = VmmRole::kSource,
       .allowed_uids = {options.vmm_uids.begin(), options.vmm_uids.end()},
       .vms_max = options.vms_max,
       .command_timeout = options.command_timeout,
       .on_detach = [self](const std::string& name) {
         self->table_.VmmGone(name);
       }});
  if (!vmms.ok()) return vmms.status();
  daemon->vmms_ = *std::move(vmms);

  auto data =
      GrpcListener::Create({.address = options.data_address,
                            .security = daemon->security_->data(),
                            .request_bytes_max = kDataPlaneRequestBytesMax},
                           {&daemon->data_service_});
  if (!data.ok()) return data.status();
  daemon->data_ = *std::move(data);
  auto control =
      GrpcListener::Create({.address = options.control_address,
                            .security = daemon->security_->control()},
                           {&daemon->control_service_});
  if (!control.ok()) return control.status();
  daemon->control_ = *std::move(control);
  return daemon;
}

void SourceDaemon::Shutdown() {
  control_service_.StopWatches();
  // Guests whose migration is given up are resumed: their VMMs are needed.
  table_.StopAll();
  if (control_ != nullptr) control_->Shutdown();
  if (data_ != nullptr) data_->Shutdown();
  if (vmms_ != nullptr) vmms_->Shutdown();
}

}  // namespace postcopy
