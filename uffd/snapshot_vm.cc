#include "uffd/snapshot_vm.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "uffd/policy_pull_order.h"

namespace postcopy {
namespace {

// Between two tries to install what the host has no memory for.
constexpr int64_t kRetryNanos = 10 * kNanosPerMilli;

absl::StatusOr<RamLayout> LayoutOf(const std::vector<SnapshotRegion>& given) {
  std::vector<Region> regions;
  RamOffset start;
  for (const SnapshotRegion& region : given) {
    // So that the sum cannot overflow before the layout is checked.
    if (region.length > kMaxRamBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "region ", regions.size(), " has ", ToString(region.length),
          "; a VM has at most ", ToString(kMaxRamBytes)));
    }
    regions.push_back({.name = absl::StrCat("region", regions.size()),
                       .start = start,
                       .length = region.length,
                       .page_size = region.page_size});
    start = regions.back().end();
  }
  return RamLayout::Create(std::move(regions), RegionPages::kSmallOrHuge);
}

std::vector<SnapshotExtent> ExtentsOf(
    const RamLayout& layout, const std::vector<SnapshotRegion>& given) {
  std::vector<SnapshotExtent> extents;
  for (size_t i = 0; i < given.size(); ++i) {
    const Region& region = layout.regions()[i];
    extents.push_back({.pages = {PageOf(region.start), PagesIn(region.length)},
                       .file_offset = given[i].file_offset,
                       .page_size = region.page_size});
  }
  return extents;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SnapshotVm>> SnapshotVm::Create(
    const OpenSnapshotPages& open, const std::vector<SnapshotRegion>& regions,
    std::unique_ptr<UffdOps> ops, Options options, Clock* clock) {
  absl::StatusOr<RamLayout> layout = LayoutOf(regions);
  if (!layout.ok()) return layout.status();
  std::vector<SnapshotExtent> extents = ExtentsOf(*layout, regions);
  std::vector<DestinationRegion> memory;
  for (const SnapshotRegion& region : regions) {
    memory.push_back({.host_address = region.host_address});
  }
  absl::StatusOr<std::unique_ptr<DestinationVm>> vm =
      DestinationVm::Create(*std::move(layout), memory, std::move(ops), clock,
                            DestinationVm::RegisteredBy::kVmm);
  if (!vm.ok()) return vm.status();
  std::unique_ptr<SnapshotVm> snapshot_vm(
      new SnapshotVm(*std::move(vm), std::move(options), clock));
  absl::Status started = snapshot_vm->Start(open, std::move(extents));
  if (!started.ok()) return started;
  return snapshot_vm;
}

SnapshotSink SnapshotVm::SinkOfThis() {
  return {
      .on_urgent =
          [this](absl::Span<const ReceivedRun> runs) {
            return Deliver(&DestinationVm::OnUrgentPages, runs);
          },
      .on_bulk =
          [this](absl::Span<const ReceivedRun> runs) {
            return Deliver(&DestinationVm::OnBulkPages, runs);
          },
      .on_failure =
          [this](absl::Status status) { OnFailure(std::move(status)); },
      .on_lost = [this] { OnLost(); },
      .on_back = [this] { OnBack(); },
      .on_trouble = [this](const absl::Status& status) { OnTrouble(status); },
      .on_error = [this](const absl::Status& status) { OnError(status); }};
}

absl::Status SnapshotVm::Start(const OpenSnapshotPages& open,
                               std::vector<SnapshotExtent> extents) {
  absl::Status status;
  {
    const std::lock_guard<std::mutex> lock(source_mutex_);
    auto source = open(std::move(extents), SinkOfThis());
    if (!source.ok()) return source.status();
    source_ = *std::move(source);
    status = Serve();
  }
  if (!status.ok()) return status;
  const std::lock_guard<std::mutex> lock(mutex_);
  serving_ = true;
  return early_error_;
}

absl::Status SnapshotVm::Serve() {
  // Nothing was precopied, so nothing is stale.
  absl::StatusOr<PageBitmap> stale = PageBitmap::Create(vm_->layout().pages());
  if (!stale.ok()) return stale.status();
  absl::Status status = vm_->DiscardStale(stale->view()).status();
  if (!status.ok()) return status;
  status = ChooseOrder();
  if (status.ok()) status = vm_->RecordFaults(options_.records);
  if (!status.ok()) return status;
  status = vm_->StartServing(
      source_.get(), options_.prefetch_bytes_per_second,
      [this](const absl::Status& end) {
        if (options_.on_end) options_.on_end(end);
      },
      options_.bulk_share);
  if (status.ok() && fetches_ahead()) status = vm_->StartBackground();
  return status;
}

absl::Status SnapshotVm::ChooseOrder() {
  if (options_.record_working_set) {
    auto recorder = std::make_unique<WorkingSetRecorder>();
    recorder_ = recorder.get();
    return vm_->SetPullOrder(std::move(recorder));
  }
  working_set_ = options_.working_set;
  if (working_set_ != nullptr && working_set_->pages != vm_->layout().pages()) {
    ignored_working_set_ = true;
    working_set_ = nullptr;
  }
  absl::Span<const PageRun> runs;
  if (working_set_ != nullptr) runs = working_set_->runs;
  return vm_->SetPullOrder(NewPullOrder(options_.prefetch
                                            ? PullOrderKind::kAdaptive
                                            : PullOrderKind::kWorkingSetOnly,
                                        runs));
}

WorkingSet SnapshotVm::recorded() const {
  WorkingSet set = {.pages = vm_->layout().pages()};
  if (recorder_ != nullptr) set.runs = recorder_->runs();
  return set;
}

absl::Status SnapshotVm::Deliver(Take take,
                                 absl::Span<const ReceivedRun> runs) {
  while (true) {
    absl::Status status = (vm_.get()->*take)(runs);
    const bool passing =
        absl::IsResourceExhausted(status) || absl::IsUnavailable(status);
    if (!passing || stopping_.load()) return status;
    clock_.SleepFor(kRetryNanos);
  }
}

void SnapshotVm::OnFailure(absl::Status status) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    early_error_ = status;
    if (!serving_) return;  // Start says it
  }
  if (stopping_.load()) return;
  // A VMM that has gone needs no poison.
  if (!absl::IsAborted(status)) {
    const absl::Status poisoned = vm_->PoisonMissing(stopping_);
    if (absl::IsCancelled(poisoned)) return;
    if (!poisoned.ok()) {
      status = absl::Status(
          status.code(),
          absl::StrCat(status.message(), "; and what is missing cannot be ",
                       "poisoned, so that threads wait there for ever: ",
                       poisoned.message()));
    }
  }
  if (options_.on_end) options_.on_end(status);
}

void SnapshotVm::OnLost() {
  const std::lock_guard<std::mutex> lock(source_mutex_);
  vm_->OnSourceLost();
}

void SnapshotVm::OnBack() {
  {
    const std::lock_guard<std::mutex> lock(source_mutex_);
    // If that fails, the source is lost again, and says so.
    vm_->OnSourceBack(source_.get()).IgnoreError();
  }
  if (std::exchange(in_trouble_, false)) OnTrouble(absl::OkStatus());
}

void SnapshotVm::OnTrouble(const absl::Status& status) {
  if (!status.ok()) in_trouble_ = true;
  if (options_.on_source && !stopping_.load()) options_.on_source(status);
}

void SnapshotVm::OnError(const absl::Status& status) {
  if (stopping_.load()) return;
  const int64_t now_ns = clock_.NowNanos();
  source_error_ns_.store(now_ns);
  const uint64_t errors = source_errors_.fetch_add(1) + 1;
  if (errors > 1 && now_ns - error_told_ns_ < kSourceErrorNanos) return;
  error_told_ns_ = now_ns;
  if (options_.on_source_error) options_.on_source_error(status, errors);
}

bool SnapshotVm::source_fails() const {
  return source_errors() > 0 &&
         clock_.NowNanos() - source_error_ns_.load() < kSourceErrorNanos;
}

SnapshotVm::~SnapshotVm() { Stop(); }

void SnapshotVm::Stop() {
  stopping_.store(true);
  const std::lock_guard<std::mutex> lock(stop_mutex_);
  // First who calls into the VM; the source itself goes after the VM, which
  // asks it until its threads have ended.
  if (source_ != nullptr) source_->Stop();
  vm_->Abort();
}

}  // namespace postcopy
