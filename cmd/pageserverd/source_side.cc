#include "cmd/pageserverd/source_side.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/control/describe.h"
#include "cmd/pageserverd/dirty_tracking.h"
#include "cmd/vmm_channel/weak_vmm.h"
#include "dirtytrack/clock.h"
#include "pageserver/guest_memory.h"

namespace postcopy {
namespace {

v1::MigrationState StateOf(SourcePhase phase) {
  switch (phase) {
    case SourcePhase::kPreparing:
      return v1::MIGRATION_STATE_PREPARING;
    case SourcePhase::kPrecopy:
      return v1::MIGRATION_STATE_PRECOPY;
    case SourcePhase::kSwitching:
      return v1::MIGRATION_STATE_SWITCHING;
    case SourcePhase::kPostcopy:
      return v1::MIGRATION_STATE_POSTCOPY;
    case SourcePhase::kCompleted:
      return v1::MIGRATION_STATE_COMPLETED;
    case SourcePhase::kCancelled:
      return v1::MIGRATION_STATE_CANCELLED;
    case SourcePhase::kFailed:
      return v1::MIGRATION_STATE_FAILED;
  }
  return v1::MIGRATION_STATE_UNSPECIFIED;
}

MigrationPolicy PolicyOf(v1::MigrationPolicy policy) {
  switch (policy) {
    case v1::MIGRATION_POLICY_POSTCOPY_ONLY:
      return MigrationPolicy::kPostcopyOnly;
    case v1::MIGRATION_POLICY_PRECOPY_ONLY:
      return MigrationPolicy::kPrecopyOnly;
    default:
      return MigrationPolicy::kPrecopyThenPostcopy;
  }
}

uint64_t Micros(int64_t nanos) {
  return static_cast<uint64_t>(nanos / kNanosPerMicro);
}

void DescribePages(const SourceSnapshot& now, v1::PageCounters& pages) {
  pages.set_total(now.total.value());
  pages.set_zero(now.zero.value());
  pages.set_precopied(now.precopied.value());
  pages.set_remaining(now.remaining.value());
  pages.set_stale_at_switch_over(now.stale.value());
  pages.set_discarded(now.discarded.value());
  pages.set_faulted(now.faulted.value());
  pages.set_background(now.background.value());
  pages.set_damaged_runs(now.damaged_runs);
}

class SourceSide final : public MigrationSide {
 public:
  SourceSide(std::shared_ptr<SourceMigration> migration,
             v1::DirtyTracking tracking, bool compress)
      : migration_(std::move(migration)),
        tracking_(std::move(tracking)),
        compress_(compress) {}

  void Describe(v1::Migration& migration) const override {
    const SourceSnapshot now = migration_->Snapshot();
    migration.set_role(v1::ROLE_SOURCE);
    migration.set_state(StateOf(now.phase));
    migration.set_status_message(now.message);
    SetStateTime(now.phase_since_ns, migration);
    migration.set_rounds(now.rounds);
    DescribePages(now, *migration.mutable_pages());
    migration.set_precopy_bytes_per_second(now.precopy_bytes_per_second);
    migration.mutable_advice()->set_recommended(now.advice.recommended);
    migration.mutable_advice()->set_reason(now.advice.reason);
    v1::SwitchOverTimes& times = *migration.mutable_switch_over();
    times.set_downtime_us(Micros(now.downtime_nanos));
    times.set_added_downtime_us(Micros(now.added_downtime_nanos));
    migration.set_recoveries(now.recoveries);
    *migration.mutable_dirty_tracking() = tracking_;
    migration.set_bulk_zstd(compress_);
    migration.set_bulk_page_bytes(now.bulk_page_bytes.value());
    migration.set_bulk_sent_bytes(now.bulk_sent_bytes.value());
  }

  bool ended() const override { return HasEnded(migration_->Snapshot().phase); }
  absl::Status SwitchOver() override { return migration_->RequestSwitchOver(); }
  absl::Status Cancel() override { return migration_->Cancel(); }
  void VmmGone() override { migration_->VmmGone(); }
  void Stop() override {
    // The guest goes on here if it may; what is committed stays so.
    migration_->Cancel().IgnoreError();
  }
  uint64_t version() const override { return migration_->version(); }
  void WaitForChange(uint64_t seen, int64_t nanos) const override {
    migration_->WaitForChange(seen, nanos);
  }

 private:
  const std::shared_ptr<SourceMigration> migration_;
  const v1::DirtyTracking tracking_;
  const bool compress_;
};

SourceGuest GuestOf(const WeakVmm& vmm) {
  return {
      .pause = [vmm] { return vmm.Call(&VmmConnection::PauseGuest); },
      .save_device_state =
          [vmm] { return vmm.Call(&VmmConnection::SaveDeviceState); },
      .resume = [vmm] { return vmm.Call(&VmmConnection::ResumeGuest); },
      .handed_over = [vmm] { vmm.MarkHandedOver(); },
      .ended =
          [vmm](bool completed) {
            // A VMM that has gone already need not be told.
            vmm.Call(&VmmConnection::MigrationEnded, completed).IgnoreError();
          }};
}

}  // namespace

absl::StatusOr<std::shared_ptr<SourceMigration>> SourceSides::NewMigration(
    const v1::CreateMigrationRequest& request,
    const std::shared_ptr<VmmConnection>& vmm,
    std::unique_ptr<DirtySource> source) {
  const Attachment& attachment = vmm->attachment();
  std::vector<RegionFile> files;
  for (size_t i = 0; i < attachment.memory.size(); ++i) {
    files.push_back({attachment.memory_fd(i), attachment.memory[i].fd_offset});
  }
  auto memory = GuestMemory::Create(attachment.layout, files);
  if (!memory.ok()) return memory.status();
  SourceOptions options = options_;
  options.policy = PolicyOf(request.policy());
  options.rounds_max = request.rounds_max();
  options.bulk_limit_per_second =
      ByteCount(request.bulk_limit_bytes_per_second());
  options.compress = request.bulk_zstd();
  return SourceMigration::Create(*std::move(memory), std::move(source),
                                 GuestOf(WeakVmm(vmm)), options,
                                 Clock::Monotonic());
}

absl::StatusOr<std::shared_ptr<MigrationSide>> SourceSides::Create(
    const v1::CreateMigrationRequest& request) {
  if (!request.source_address().empty()) {
    return absl::InvalidArgumentError(
        "source_address is for the destination: this daemon is the source");
  }
  std::shared_ptr<VmmConnection> vmm = find_vm_(request.vm_name());
  if (vmm == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("no VM \"", request.vm_name(),
                     "\" is attached to this source: has its VMM connected?"));
  }
  if (vmm->handed_over()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "VM \"", request.vm_name(),
        "\" has been handed over to another host: what is attached here is "
        "what it left behind; end that VMM"));
  }
  absl::StatusOr<ChosenDirtySource> chosen = ChooseDirtySource(vmm);
  if (!chosen.ok()) return chosen.status();
  absl::StatusOr<std::shared_ptr<SourceMigration>> migration =
      NewMigration(request, vmm, std::move(chosen->source));
  if (!migration.ok()) return migration.status();
  directory_->Add(request.migration_id(), request.vm_name(), *migration);
  return std::make_shared<SourceSide>(
      *std::move(migration), std::move(chosen->told), request.bulk_zstd());
}

}  // namespace postcopy
