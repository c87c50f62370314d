#include "cmd/faultd/destination_daemon.h"

#include <utility>

#include "cmd/control/migration_metrics.h"

namespace postcopy {
namespace {

void AddBulkShareMetrics(const BulkShare& share, MetricFamilies& families) {
  families.Gauge("postcopy_bulk_permits",
                 "Bulk requests that all VMs may have in flight together.",
                 static_cast<double>(share.requests()));
  families.Gauge("postcopy_bulk_permits_in_flight", "Of these, those that are.",
                 static_cast<double>(share.in_flight()));
  families.Gauge("postcopy_bulk_waiting_vms", "VMs that wait for their turn.",
                 static_cast<double>(share.waiting()));
  families.Counter("postcopy_bulk_permits_total",
                   "Permits for a bulk request handed out.",
                   static_cast<double>(share.granted()));
  families.Counter("postcopy_bulk_permits_waited_total",
                   "Times that a VM had to wait for a permit.",
                   static_cast<double>(share.waited()));
  families.Counter("postcopy_bulk_permits_expired_total",
                   "Permits that ended without an answer from the source.",
                   static_cast<double>(share.expired()));
}

}  // namespace

DestinationDaemon::DestinationDaemon(const Options& options,
                                     std::unique_ptr<DaemonSecurity> security)
    : security_(std::move(security)),
      bulk_share_(options.bulk_share),
      vm_events_("destination", options.log),
      sides_({.bulk_share = options.bulk_share,
              .reconnect_nanos =
                  absl::ToInt64Nanoseconds(options.reconnect_timeout)},
             security_->dialling(), options.recorder, options.log),
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
       .inherited_socket = options.inherited_vmm_socket,
       .role = VmmRole::kDestination,
       .allowed_uids = {options.vmm_uids.begin(), options.vmm_uids.end()},
       .vms_max = options.vms_max,
       .command_timeout = options.command_timeout,
       .on_attach =
           [self](const std::shared_ptr<VmmConnection>& vmm) {
             absl::Status status = self->sides_.Attach(vmm);
             if (status.ok()) self->vm_events_.Attached(vmm->vm_name());
             return status;
           },
       .on_detach =
           [self](const std::string& name) {
             self->vm_events_.Detached(name);
             self->sides_.Detach(name);
             self->table_.VmmGone(name);
           },
       .on_refuse =
           [self](const absl::Status& why) { self->vm_events_.Refused(why); }});
  if (!vmms.ok()) return vmms.status();
  daemon->vmms_ = *std::move(vmms);
  auto control =
      GrpcListener::Create({.address = options.control_address,
                            .security = daemon->security_->control(),
                            .health_names = {"postcopy.v1.MigrationService"},
                            .channelz = options.channelz},
                           {&daemon->control_service_});
  if (!control.ok()) return control.status();
  daemon->control_ = *std::move(control);
  return daemon;
}

void DestinationDaemon::AddMetrics(MetricFamilies& families) const {
  AddMigrationMetrics("destination", table_.Totals(), families);
  vm_events_.AddMetrics(families);
  if (bulk_share_ != nullptr) AddBulkShareMetrics(*bulk_share_, families);
}

DaemonLoad DestinationDaemon::Load() const {
  const MigrationTable::Load migrations = table_.load();
  return {.vms = vmms_->names().size(),
          .migrations = migrations.running,
          .needing = migrations.needing};
}

void DestinationDaemon::StopTaking() {
  control_->SetServing(false);
  table_.StopTaking(
      "this faultd is ending: use another host, or wait until it runs again");
}

bool DestinationDaemon::ShowsLife() {
  const bool listens = vmms_->ShowsLife();
  return table_.AllShowLife() && listens;
}

void DestinationDaemon::Shutdown() {
  if (control_ != nullptr) control_->SetServing(false);
  control_service_.StopWatches();
  // The control plane waits for its calls, and an AbandonMigration takes as
  // long as there are pages.
  table_.AskAllToStop();
  if (control_ != nullptr) control_->Shutdown();
  // Before the migrations: a VMM that loads its device state may wait for a
  // page that will not come.
  if (vmms_ != nullptr) vmms_->Shutdown();
  table_.StopAll();
}

}  // namespace postcopy
