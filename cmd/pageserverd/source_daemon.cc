#include "cmd/pageserverd/source_daemon.h"

#include <utility>

#include "cmd/control/migration_metrics.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

constexpr char kControlPlane[] = "postcopy.v1.MigrationService";
constexpr char kDataPlane[] = "postcopy.v1.DataPlaneService";

}  // namespace

SourceDaemon::SourceDaemon(const Options& options,
                           std::unique_ptr<DaemonSecurity> security)
    : security_(std::move(security)),
      events_(options.log),
      snapshots_(Clock::Monotonic()),
      sides_([this](const std::string& name) { return vmms_->Find(name); },
             &directory_,
             {.reconnect_nanos =
                  absl::ToInt64Nanoseconds(options.reconnect_timeout)},
             options.log),
      table_(
          [this](const v1::CreateMigrationRequest& request) {
            return sides_.Create(request);
          },
          [this](const v1::CreateMigrationRequest& request) {
            return sides_.Validate(request);
          },
          [this](const std::string& id) { directory_.Remove(id); }),
      control_service_(&table_),
      data_service_(&directory_, &snapshots_, events_.Observer()) {}

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
       .inherited_socket = options.inherited_vmm_socket,
       .role = VmmRole::kSource,
       .allowed_uids = {options.vmm_uids.begin(), options.vmm_uids.end()},
       .vms_max = options.vms_max,
       .command_timeout = options.command_timeout,
       .on_attach =
           [self](const std::shared_ptr<VmmConnection>& vmm) {
             self->events_.vms().Attached(vmm->vm_name());
             return absl::OkStatus();
           },
       .on_detach =
           [self](const std::string& name) {
             self->events_.vms().Detached(name);
             self->table_.VmmGone(name);
           },
       .on_refuse =
           [self](const absl::Status& why) {
             self->events_.vms().Refused(why);
           }});
  if (!vmms.ok()) return vmms.status();
  daemon->vmms_ = *std::move(vmms);

  auto data =
      GrpcListener::Create({.address = options.data_address,
                            .security = daemon->security_->data(),
                            .request_bytes_max = kDataPlaneRequestBytesMax,
                            .health_names = {kDataPlane}},
                           {&daemon->data_service_});
  if (!data.ok()) return data.status();
  daemon->data_ = *std::move(data);
  // Behind the data plane, which is to have no channelz.
  auto control =
      GrpcListener::Create({.address = options.control_address,
                            .security = daemon->security_->control(),
                            .health_names = {kControlPlane, kDataPlane},
                            .channelz = options.channelz},
                           {&daemon->control_service_});
  if (!control.ok()) return control.status();
  daemon->control_ = *std::move(control);
  return daemon;
}

void SourceDaemon::AddMetrics(MetricFamilies& families) const {
  AddMigrationMetrics("source", table_.Totals(), families);
  events_.AddMetrics(families);
}

DaemonLoad SourceDaemon::Load() const {
  const MigrationTable::Load migrations = table_.load();
  return {.vms = vmms_->names().size(),
          .migrations = migrations.running,
          .needing = migrations.needing};
}

void SourceDaemon::StopTaking() {
  control_->SetServing(false);
  data_->SetServing(false);
  table_.StopTaking(
      "this pageserverd is ending: use another host, or wait until it runs "
      "again");
}

bool SourceDaemon::ShowsLife() {
  const bool listens = vmms_->ShowsLife();
  return table_.AllShowLife() && listens;
}

void SourceDaemon::Shutdown() {
  if (control_ != nullptr) control_->SetServing(false);
  if (data_ != nullptr) data_->SetServing(false);
  control_service_.StopWatches();
  // Guests whose migration is given up are resumed: their VMMs are needed.
  table_.StopAll();
  if (control_ != nullptr) control_->Shutdown();
  if (data_ != nullptr) data_->Shutdown();
  if (vmms_ != nullptr) vmms_->Shutdown();
}

}  // namespace postcopy
