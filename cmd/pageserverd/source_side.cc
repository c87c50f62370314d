#include "cmd/pageserverd/source_side.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/control/describe.h"
#include "cmd/control/migration_log.h"
#include "cmd/pageserverd/dirty_tracking.h"
#include "cmd/vmm_channel/weak_vmm.h"
#include "dirtytrack/clock.h"
#include "pageserver/dry_run.h"
#include "pageserver/guest_memory.h"

namespace postcopy {
namespace {

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

v1::SwitchOverVerdict VerdictOf(Verdict verdict) {
  switch (verdict) {
    case Verdict::kWait:
      return v1::SWITCH_OVER_VERDICT_WAIT;
    case Verdict::kConverged:
      return v1::SWITCH_OVER_VERDICT_CONVERGED;
    case Verdict::kNotConverging:
      return v1::SWITCH_OVER_VERDICT_NOT_CONVERGING;
    case Verdict::kRoundsUsedUp:
      return v1::SWITCH_OVER_VERDICT_ROUNDS_USED_UP;
    case Verdict::kDeadline:
      return v1::SWITCH_OVER_VERDICT_DEADLINE;
    case Verdict::kPolicy:
      return v1::SWITCH_OVER_VERDICT_POLICY;
  }
  return v1::SWITCH_OVER_VERDICT_UNSPECIFIED;
}

void DescribeEstimate(const Estimate& now, v1::SwitchOverEstimate& estimate) {
  if (now.dirty_bytes_per_second >= 0) {
    estimate.set_dirty_bytes_per_second(now.dirty_bytes_per_second);
  }
  if (now.bandwidth_bytes_per_second >= 0) {
    estimate.set_bandwidth_bytes_per_second(now.bandwidth_bytes_per_second);
  }
  if (now.remaining_precopy_nanos >= 0) {
    estimate.set_remaining_precopy_ms(now.remaining_precopy_nanos /
                                      kNanosPerMilli);
  }
  if (now.downtime_nanos >= 0) {
    estimate.set_downtime_us(Micros(now.downtime_nanos));
  }
  if (now.stall_nanos >= 0) {
    estimate.set_stall_ms(now.stall_nanos / kNanosPerMilli);
  }
  estimate.set_unsent_bytes(now.unsent.value());
}

// What the creator chose of it, with nothing left open.
void DescribeMode(const SourceOptions& options, v1::Migration& migration) {
  migration.set_switch_over_mode(options.switch_by_itself
                                     ? v1::SWITCH_OVER_MODE_AUTO
                                     : v1::SWITCH_OVER_MODE_MANUAL);
  migration.set_deadline_ms_per_gib(options.deadline_nanos_per_gib /
                                    kNanosPerMilli);
}

VmTotals TotalsOf(const SourceSnapshot& now) {
  VmTotals totals;
  totals[VmCounter::kPrecopiedPages] = now.precopied.value();
  totals[VmCounter::kFaultedPages] = now.faulted.value();
  totals[VmCounter::kBackgroundPages] = now.background.value();
  totals[VmCounter::kZeroPages] = now.zero.value();
  totals[VmCounter::kStalePages] = now.stale.value();
  totals[VmCounter::kDiscardedPages] = now.discarded.value();
  totals[VmCounter::kBulkPageBytes] = now.bulk_page_bytes.value();
  totals[VmCounter::kBulkSentBytes] = now.bulk_sent_bytes.value();
  totals[VmCounter::kDamagedRuns] = now.damaged_runs;
  totals[VmCounter::kRounds] = now.rounds;
  totals[VmCounter::kRecoveries] = now.recoveries;
  if (now.downtime_nanos > 0) {
    totals[VmCounter::kHandOvers] = 1;
    totals[VmCounter::kDowntimeNanos] =
        static_cast<uint64_t>(now.downtime_nanos);
    totals[VmCounter::kAddedDowntimeNanos] =
        static_cast<uint64_t>(now.added_downtime_nanos);
  }
  return totals;
}

class SourceSide final : public MigrationSide {
 public:
  SourceSide(std::shared_ptr<SourceMigration> migration,
             v1::DirtyTracking tracking, SourceOptions options)
      : migration_(std::move(migration)),
        tracking_(std::move(tracking)),
        options_(options) {}

  void Describe(v1::Migration& migration) const override {
    const SourceSnapshot now = migration_->Snapshot();
    migration.set_role(v1::ROLE_SOURCE);
    DescribeState(now.phase, now.message, now.phase_since_ns, migration);
    DescribeChanges(migration_->Changes(), migration);
    migration.set_bulk_limit_bytes_per_second(now.bulk_limit.value());
    migration.set_rounds(now.rounds);
    DescribePages(now, *migration.mutable_pages());
    migration.set_precopy_bytes_per_second(now.precopy_bytes_per_second);
    migration.mutable_advice()->set_recommended(now.advice.recommended);
    migration.mutable_advice()->set_reason(now.advice.reason);
    DescribeEstimate(now.estimate, *migration.mutable_estimate());
    migration.mutable_estimate()->set_verdict(VerdictOf(now.advice.verdict));
    DescribeMode(options_, migration);
    v1::SwitchOverTimes& times = *migration.mutable_switch_over();
    times.set_downtime_us(Micros(now.downtime_nanos));
    times.set_added_downtime_us(Micros(now.added_downtime_nanos));
    migration.set_recoveries(now.recoveries);
    *migration.mutable_dirty_tracking() = tracking_;
    migration.set_bulk_zstd(options_.compress);
    migration.set_bulk_page_bytes(now.bulk_page_bytes.value());
    migration.set_bulk_sent_bytes(now.bulk_sent_bytes.value());
  }

  SideTotals Totals() const override {
    const SourceSnapshot now = migration_->Snapshot();
    SideTotals totals = {.state = StateOf(now.phase), .vm = TotalsOf(now)};
    if (!HasEnded(now.phase)) {
      totals.vm.remaining_pages = now.remaining.value();
    }
    return totals;
  }

  bool ended() const override { return HasEnded(migration_->phase()); }
  absl::Status SwitchOver() override { return migration_->RequestSwitchOver(); }
  absl::Status Cancel() override { return migration_->Cancel(); }
  absl::Status Pause() override {
    return migration_->Refuse(MigrationEvent::kPause);
  }
  absl::Status Recover(const std::string& /*source_address*/) override {
    return migration_->Refuse(MigrationEvent::kRecover);
  }
  absl::Status SetBulkLimit(uint64_t bytes_per_second) override {
    return migration_->SetBulkLimit(ByteCount(bytes_per_second));
  }
  absl::Status Abandon() override {
    return migration_->Refuse(MigrationEvent::kAbandon);
  }
  absl::Status MayDelete() const override {
    return migration_->Refuse(MigrationEvent::kDelete);
  }
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
  const SourceOptions options_;
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

absl::StatusOr<SourceSides::Parts> SourceSides::Gather(
    const v1::CreateMigrationRequest& request) const {
  if (!request.source_address().empty()) {
    return absl::InvalidArgumentError(
        "source_address is for the destination: this daemon is the source");
  }
  Parts parts{.vmm = find_vm_(request.vm_name()), .options = options_};
  if (parts.vmm == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("no VM \"", request.vm_name(),
                     "\" is attached to this source: has its VMM connected?"));
  }
  if (parts.vmm->handed_over()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "VM \"", request.vm_name(),
        "\" has been handed over to another host: what is attached here is "
        "what it left behind; end that VMM"));
  }
  absl::StatusOr<ChosenDirtySource> chosen = ChooseDirtySource(parts.vmm);
  if (!chosen.ok()) return chosen.status();
  parts.tracking = *std::move(chosen);
  const Attachment& attachment = parts.vmm->attachment();
  std::vector<RegionFile> files;
  for (size_t i = 0; i < attachment.memory.size(); ++i) {
    files.push_back({attachment.memory_fd(i), attachment.memory[i].fd_offset});
  }
  auto memory = GuestMemory::Create(attachment.layout, files);
  if (!memory.ok()) return memory.status();
  parts.memory = *std::move(memory);
  parts.memory->Keep(parts.vmm->held());
  const bool by_itself =
      request.switch_over_mode() == v1::SWITCH_OVER_MODE_AUTO;
  parts.options.policy = PolicyOf(request.policy());
  parts.options.rounds_max = request.rounds_max();
  parts.options.bulk_limit_per_second =
      ByteCount(request.bulk_limit_bytes_per_second());
  parts.options.compress = request.bulk_zstd();
  parts.options.switch_by_itself = by_itself;
  parts.options.deadline_nanos_per_gib =
      request.deadline_ms_per_gib() * kNanosPerMilli;
  if (by_itself && request.deadline_ms_per_gib() == 0) {
    parts.options.deadline_nanos_per_gib = kAutoDeadlineNanosPerGib;
  }
  return parts;
}

absl::StatusOr<std::shared_ptr<MigrationSide>> SourceSides::Create(
    const v1::CreateMigrationRequest& request) {
  absl::StatusOr<Parts> parts = Gather(request);
  if (!parts.ok()) return parts.status();
  auto told = std::make_shared<MigrationLog>(log_, request, Clock::Monotonic());
  told->Changed(v1::MIGRATION_STATE_PREPARING, "created");
  parts->options.on_change = [told](MigrationPhase phase,
                                    const std::string& why) {
    told->Changed(StateOf(phase), why);
  };
  auto created = SourceMigration::Create(
      std::move(parts->memory), std::move(parts->tracking.source),
      GuestOf(WeakVmm(parts->vmm)), parts->options, Clock::Monotonic());
  if (!created.ok()) return created.status();
  const std::shared_ptr<SourceMigration> migration = *std::move(created);
  directory_->Add(request.migration_id(), request.vm_name(), migration);
  return std::make_shared<SourceSide>(
      migration, std::move(parts->tracking.told), parts->options);
}

absl::StatusOr<v1::Migration> SourceSides::Validate(
    const v1::CreateMigrationRequest& request) const {
  absl::StatusOr<Parts> parts = Gather(request);
  if (!parts.ok()) return parts.status();
  const absl::StatusOr<Estimate> estimate =
      DryRun(*parts->memory, parts->tracking.source.get(), parts->options,
             Clock::Monotonic());
  if (!estimate.ok()) return estimate.status();
  v1::Migration migration;
  migration.set_role(v1::ROLE_SOURCE);
  migration.mutable_pages()->set_total(parts->memory->layout().pages().value());
  migration.set_bulk_limit_bytes_per_second(
      request.bulk_limit_bytes_per_second());
  *migration.mutable_dirty_tracking() = parts->tracking.told;
  migration.set_bulk_zstd(request.bulk_zstd());
  DescribeEstimate(*estimate, *migration.mutable_estimate());
  DescribeMode(parts->options, migration);
  return migration;
}

}  // namespace postcopy
