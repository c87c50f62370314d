#include "cmd/faultd/destination_side.h"

#include <fcntl.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/control/describe.h"
#include "cmd/control/migration_log.h"
#include "cmd/faultd/served_vm_totals.h"
#include "cmd/vmm_channel/weak_vmm.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/unique_fd.h"
#include "uffd/data_plane_client.h"
#include "uffd/fault_times.h"
#include "uffd/kernel_uffd.h"
#include "uffd/policy_pull_order.h"
#include "uffd/waiting_threads.h"

namespace postcopy {
namespace {

// What was asked for, with nothing left open.
v1::PullOrder ChosenOrder(const v1::CreateMigrationRequest& request) {
  return request.pull_order() == v1::PULL_ORDER_UNSPECIFIED
             ? v1::PULL_ORDER_ADAPTIVE
             : request.pull_order();
}

PullOrderKind KindOf(v1::PullOrder order) {
  switch (order) {
    case v1::PULL_ORDER_LINEAR:
      return PullOrderKind::kLinear;
    case v1::PULL_ORDER_AFTER_FAULT:
      return PullOrderKind::kAfterFault;
    case v1::PULL_ORDER_AROUND_FAULTS:
      return PullOrderKind::kAroundFaults;
    case v1::PULL_ORDER_RECENTLY_DIRTIED:
      return PullOrderKind::kRecentlyDirtied;
    default:
      return PullOrderKind::kAdaptive;
  }
}

void DescribePages(const DestinationSnapshot& now, v1::PageCounters& pages) {
  pages.set_total(now.pages.total.value());
  pages.set_zero(now.pages.zero.value());
  pages.set_precopied(now.pages.precopied.value());
  pages.set_remaining(now.pages.missing.value());
  pages.set_stale_at_switch_over(now.stale.value());
  pages.set_discarded(now.pages.discarded.value());
  pages.set_faulted(now.pages.faulted.value());
  pages.set_background(now.pages.background.value());
  pages.set_damaged_runs(now.damaged_runs);
}

// Rounded up, so that a fault of 300 ns does not show as none.
uint64_t MicrosUp(uint64_t nanos) {
  return (nanos + kNanosPerMicro - 1) / kNanosPerMicro;
}

void DescribeLatency(const LatencySnapshot& now, v1::FaultLatency& latency) {
  latency.set_count(now.count());
  latency.set_p50_us(MicrosUp(now.PercentileNs(50)));
  latency.set_p90_us(MicrosUp(now.PercentileNs(90)));
  latency.set_p99_us(MicrosUp(now.PercentileNs(99)));
  latency.set_max_us(MicrosUp(now.max_ns()));
  for (uint64_t count : now.micros_buckets()) latency.add_bucket_counts(count);
}

v1::FaultStageKind KindOf(FaultStage stage) {
  switch (stage) {
    case FaultStage::kReading:
      return v1::FAULT_STAGE_KIND_READING;
    case FaultStage::kAsking:
      return v1::FAULT_STAGE_KIND_ASKING;
    case FaultStage::kAnswering:
      return v1::FAULT_STAGE_KIND_ANSWERING;
    case FaultStage::kInstalling:
      return v1::FAULT_STAGE_KIND_INSTALLING;
  }
  return v1::FAULT_STAGE_KIND_UNSPECIFIED;
}

void DescribeStage(const LatencySnapshot& now, v1::FaultStage& stage) {
  stage.set_count(now.count());
  stage.set_p50_us(MicrosUp(now.PercentileNs(50)));
  stage.set_p90_us(MicrosUp(now.PercentileNs(90)));
  stage.set_p99_us(MicrosUp(now.PercentileNs(99)));
  stage.set_max_us(MicrosUp(now.max_ns()));
  stage.set_total_us(MicrosUp(now.sum_ns()));
}

void DescribeThread(const FaultingThread& now, v1::FaultingThread& thread) {
  thread.set_thread_id(now.id);
  thread.set_faults(now.faults);
  thread.set_wait_us(MicrosUp(now.wait_ns));
  thread.set_wait_max_us(MicrosUp(now.wait_max_ns));
}

void DescribeFaultTimes(const FaultTimesSnapshot& now, v1::FaultTimes& times) {
  for (size_t i = 0; i < kFaultStages; ++i) {
    v1::FaultStage& stage = *times.add_stages();
    stage.set_kind(KindOf(static_cast<FaultStage>(i)));
    DescribeStage(now.stages[i], stage);
  }
  times.set_stalled_us(MicrosUp(now.stalled_ns));
  for (const FaultingThread& thread : now.threads.threads) {
    DescribeThread(thread, *times.add_threads());
  }
  if (now.threads.others.faults > 0) {
    DescribeThread(now.threads.others, *times.mutable_other_threads());
  }
}

// Makes what dials the source at an address.
using NewDialer =
    std::function<std::unique_ptr<SourceDialer>(const std::string& address)>;

class DestinationSide final : public MigrationSide {
 public:
  DestinationSide(std::unique_ptr<DestinationMigration> migration,
                  v1::PullOrder pull_order, NewDialer new_dialer,
                  std::string source_address)
      : migration_(std::move(migration)),
        pull_order_(pull_order),
        new_dialer_(std::move(new_dialer)),
        source_address_(std::move(source_address)) {}

  void Describe(v1::Migration& migration) const override {
    const DestinationSnapshot now = migration_->Snapshot();
    migration.set_role(v1::ROLE_DESTINATION);
    DescribeState(now.phase, now.message, now.phase_since_ns, migration);
    DescribeChanges(migration_->Changes(), migration);
    migration.set_bulk_limit_bytes_per_second(now.bulk_limit.value());
    migration.set_pause_requested(now.pause_requested);
    {
      std::lock_guard lock(mutex_);
      migration.set_source_address(source_address_);
    }
    migration.set_rounds(now.rounds);
    DescribePages(now, *migration.mutable_pages());
    DescribeLatency(now.fault_latency, *migration.mutable_fault_latency());
    DescribeFaultTimes(now.fault_times, *migration.mutable_fault_times());
    migration.set_recoveries(now.recoveries);
    migration.set_pull_order(pull_order_);
    migration.set_minor_faults(now.pages.minor_faults);
    migration.set_mapped_ahead_pages(now.pages.mapped_ahead.value());
  }

  SideTotals Totals() const override {
    const DestinationSnapshot now = migration_->Snapshot();
    SideTotals totals = {.state = StateOf(now.phase),
                         .vm = TotalsOf(now.pages, now.fault_latency,
                                        now.fault_times, !HasEnded(now.phase))};
    totals.vm[VmCounter::kStalePages] = now.stale.value();
    totals.vm[VmCounter::kDamagedRuns] = now.damaged_runs;
    totals.vm[VmCounter::kRounds] = now.rounds;
    totals.vm[VmCounter::kRecoveries] = now.recoveries;
    return totals;
  }

  bool ended() const override { return HasEnded(migration_->phase()); }
  absl::Status SwitchOver() override {
    return migration_->Refuse(MigrationEvent::kSwitchOver);
  }
  absl::Status Cancel() override { return migration_->Cancel(); }
  absl::Status Pause() override { return migration_->Pause(); }
  absl::Status Recover(const std::string& source_address) override {
    if (source_address.empty()) return migration_->Recover(nullptr);
    absl::Status status = migration_->Recover(new_dialer_(source_address));
    if (!status.ok()) return status;
    std::lock_guard lock(mutex_);
    source_address_ = source_address;
    return absl::OkStatus();
  }
  absl::Status SetBulkLimit(uint64_t bytes_per_second) override {
    return migration_->SetBulkLimit(ByteCount(bytes_per_second));
  }
  absl::Status Abandon() override { return migration_->Abandon(); }
  absl::Status MayDelete() const override {
    return migration_->Refuse(MigrationEvent::kDelete);
  }
  bool ShowsLife() override { return migration_->ShowsLife(); }
  void VmmGone() override { migration_->VmmGone(); }
  void Stop() override { migration_->Stop(); }
  void AskToStop() override { migration_->AskToStop(); }
  uint64_t version() const override { return migration_->version(); }
  void WaitForChange(uint64_t seen, int64_t nanos) const override {
    migration_->WaitForChange(seen, nanos);
  }

 private:
  const std::unique_ptr<DestinationMigration> migration_;
  const v1::PullOrder pull_order_;
  const NewDialer new_dialer_;

  mutable std::mutex mutex_;
  std::string source_address_;  // guarded by mutex_
};

DestinationGuest GuestOf(const WeakVmm& vmm) {
  return {
      .load_device_state =
          [vmm](absl::string_view state) {
            return vmm.Call(&VmmConnection::LoadDeviceState, state);
          },
      .resume = [vmm] { return vmm.Call(&VmmConnection::ResumeGuest); },
      .ended =
          [vmm](bool completed) {
            // A VMM that has gone already need not be told.
            vmm.Call(&VmmConnection::MigrationEnded, completed).IgnoreError();
          }};
}

absl::StatusOr<std::unique_ptr<DestinationVm>> RegisterVm(
    const Attachment& attachment) {
  UniqueFd fd(::fcntl(attachment.userfaultfd.get(), F_DUPFD_CLOEXEC, 0));
  absl::StatusOr<std::unique_ptr<KernelUffd>> uffd =
      KernelUffd::Adopt(std::move(fd));
  if (!uffd.ok()) return uffd.status();
  std::vector<DestinationRegion> regions;
  for (size_t i = 0; i < attachment.memory.size(); ++i) {
    regions.push_back({.host_address = attachment.memory[i].host_address,
                       .memory_fd = attachment.memory_fd(i),
                       .fd_offset = attachment.memory[i].fd_offset,
                       .staged = true});
  }
  return DestinationVm::Create(attachment.layout, regions, *std::move(uffd),
                               Clock::Monotonic());
}

}  // namespace

absl::Status DestinationSides::Attach(
    const std::shared_ptr<VmmConnection>& vmm) {
  absl::StatusOr<std::unique_ptr<DestinationVm>> vm =
      RegisterVm(vmm->attachment());
  if (!vm.ok()) return vm.status();
  (*vm)->Keep(vmm->held());
  std::lock_guard lock(mutex_);
  waiting_[vmm->vm_name()] = {vmm, *std::move(vm)};
  return absl::OkStatus();
}

void DestinationSides::Detach(const std::string& vm_name) {
  std::lock_guard lock(mutex_);
  waiting_.erase(vm_name);
}

absl::StatusOr<DestinationSides::Waiting*> DestinationSides::FindLocked(
    const v1::CreateMigrationRequest& request) {
  if (request.source_address().empty()) {
    return absl::InvalidArgumentError(
        "source_address is missing: this daemon is the destination and must "
        "know where to fetch pages");
  }
  const auto waiting = waiting_.find(request.vm_name());
  if (waiting == waiting_.end()) {
    return absl::NotFoundError(absl::StrCat(
        "no VM \"", request.vm_name(),
        "\" is attached to this destination: has its VMM connected?"));
  }
  if (waiting->second.vm == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("the memory of VM \"", request.vm_name(),
                     "\" has been used by a migration before: end its VMM and "
                     "attach a fresh one"));
  }
  return &waiting->second;
}

absl::StatusOr<v1::Migration> DestinationSides::Validate(
    const v1::CreateMigrationRequest& request) {
  std::lock_guard lock(mutex_);
  absl::StatusOr<Waiting*> waiting = FindLocked(request);
  if (!waiting.ok()) return waiting.status();
  v1::Migration migration;
  migration.set_role(v1::ROLE_DESTINATION);
  migration.mutable_pages()->set_total(
      (*waiting)->vm->layout().pages().value());
  migration.set_bulk_limit_bytes_per_second(
      request.bulk_limit_bytes_per_second());
  migration.set_pull_order(ChosenOrder(request));
  migration.set_source_address(request.source_address());
  return migration;
}

absl::StatusOr<std::shared_ptr<MigrationSide>> DestinationSides::Create(
    const v1::CreateMigrationRequest& request) {
  std::lock_guard lock(mutex_);
  absl::StatusOr<Waiting*> waiting = FindLocked(request);
  if (!waiting.ok()) return waiting.status();
  const NewDialer new_dialer =
      [id = request.migration_id(), vm = request.vm_name(),
       layout = (*waiting)->vmm->attachment().layout,
       trace = request.trace_id(),
       dialling = dialling_](const std::string& address) {
        return NewGrpcSourceDialer(
            address,
            [dialling, address] { return dialling.CredentialsFor(address); },
            id, vm, layout, trace);
      };
  DestinationOptions options = options_;
  options.bulk_limit_per_second =
      ByteCount(request.bulk_limit_bytes_per_second());
  options.pull_order = KindOf(ChosenOrder(request));
  auto told = std::make_shared<MigrationLog>(log_, request, Clock::Monotonic());
  told->Changed(v1::MIGRATION_STATE_PREPARING, "created");
  options.on_change = [told](MigrationPhase phase, const std::string& why) {
    told->Changed(StateOf(phase), why);
  };
  if (recorder_ != nullptr) {
    DestinationVm& vm = *(*waiting)->vm;
    absl::Status recorded = vm.RecordFaults(
        recorder_->Record(request.vm_name(), vm.layout().pages()));
    if (!recorded.ok()) return recorded;
  }
  auto migration = std::make_unique<DestinationMigration>(
      std::move((*waiting)->vm), new_dialer(request.source_address()),
      GuestOf(WeakVmm((*waiting)->vmm)), options, Clock::Monotonic());
  if (absl::Status s = migration->Start(); !s.ok()) return s;
  return std::make_shared<DestinationSide>(std::move(migration),
                                           ChosenOrder(request), new_dialer,
                                           request.source_address());
}

}  // namespace postcopy
