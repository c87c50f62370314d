#include "uffd/destination_vm.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "uffd/policy_pull_order.h"

namespace postcopy {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

uint64_t Load(const std::atomic<uint64_t>& counter) {
  return counter.load(kRelaxed);
}

absl::Status RegisterError(const std::string& region,
                           const DestinationRam::Piece& piece, int error) {
  const std::string what = absl::StrCat(
      "region \"", region, "\": cannot register ", ToString(piece.bytes()),
      " at ", ToString(piece.address), ": ", ::strerrordesc_np(error));
  switch (error) {
    case ENOMEM:
    case ESRCH:
      return absl::AbortedError(
          absl::StrCat(what, "; the VMM's process is gone"));
    case EINVAL:
    case ENOENT:
      return absl::InvalidArgumentError(absl::StrCat(
          what,
          "; the VMM has not mapped it there in full, from memory that can be "
          "served, or not aligned to its huge pages"));
    case EBUSY:
      return absl::InvalidArgumentError(absl::StrCat(
          what, "; it is registered with another userfaultfd already"));
    default:
      return absl::InternalError(what);
  }
}

absl::Status NoPages() {
  return absl::InvalidArgumentError("the peer sent an answer without pages");
}

}  // namespace

absl::StatusOr<std::unique_ptr<DestinationVm>> DestinationVm::Create(
    RamLayout layout, const std::vector<DestinationRegion>& regions,
    std::unique_ptr<UffdOps> ops, Clock* clock, RegisteredBy registered_by) {
  absl::StatusOr<std::unique_ptr<PageState>> state =
      PageState::Create(layout.pages());
  if (!state.ok()) return state.status();
  absl::StatusOr<DestinationRam> ram =
      DestinationRam::Create(std::move(layout), regions);
  if (!ram.ok()) return ram.status();
  std::unique_ptr<DestinationVm> vm(new DestinationVm(
      *std::move(ram), *std::move(state), std::move(ops), clock));
  absl::Status registered = vm->RegisterAll();
  if (registered.ok()) return vm;
  if (registered_by == RegisteredBy::kThis) vm->UnregisterAll().IgnoreError();
  return registered;
}

DestinationVm::DestinationVm(DestinationRam ram,
                             std::unique_ptr<PageState> state,
                             std::unique_ptr<UffdOps> ops, Clock* clock)
    : ram_(std::move(ram)),
      state_(std::move(state)),
      ops_(std::move(ops)),
      clock_(*clock),
      gate_(ops_->tells_of_removals()),
      changes_(&ram_, state_.get(), &strategies_),
      installer_(&ram_, ops_.get(), state_.get(), &gate_, &strategies_),
      store_(&ram_, state_.get(), &strategies_),
      map_ahead_(&ram_, state_.get(), &installer_, clock),
      order_(NewPullOrder(PullOrderKind::kAdaptive)) {}

DestinationVm::~DestinationVm() { Abort(); }

absl::Status DestinationVm::RegisterAll() {
  for (size_t i = 0; i < ram_.region_count(); ++i) {
    absl::StatusOr<std::unique_ptr<InstallStrategy>> strategy =
        RegisterRegion(i);
    if (!strategy.ok()) return strategy.status();
    strategies_.push_back(*std::move(strategy));
  }
  return absl::OkStatus();
}

bool DestinationVm::AnyOutOfSight() const {
  return std::any_of(strategies_.begin(), strategies_.end(),
                     [](const auto& strategy) {
                       return strategy->replaces() || strategy->staged();
                     });
}

absl::StatusOr<std::unique_ptr<InstallStrategy>> DestinationVm::RegisterRegion(
    size_t index) {
  const Region& region = layout().regions()[index];
  const DestinationRam::Piece memory = ram_.region(index);
  const UffdRegistration registered = ops_->Register(
      memory.address, memory.bytes(), RegisterModes(memory, ops_->features()));
  if (!registered.ok()) {
    return RegisterError(region.name, memory, registered.error);
  }
  absl::StatusOr<std::unique_ptr<InstallStrategy>> strategy =
      ChooseInstallStrategy(memory, registered);
  if (strategy.ok()) return strategy;
  return absl::Status(absl::IsUnimplemented(strategy.status())
                          ? absl::StatusCode::kInvalidArgument
                          : strategy.status().code(),
                      absl::StrCat("region \"", region.name,
                                   "\": ", strategy.status().message()));
}

absl::Status DestinationVm::UnregisterAll() {
  absl::Status status;
  PageRun rest = {PageIndex(0), layout().pages()};
  while (!rest.count.empty()) {
    const DestinationRam::Piece piece = ram_.FirstPiece(rest);
    absl::Status unregistered = UnregisterPiece(piece);
    if (status.ok()) status = std::move(unregistered);
    rest = {piece.pages.end(), rest.count - piece.pages.count};
  }
  if (gate_.needed()) ReadLastMessages();
  return status;
}

absl::Status DestinationVm::UnregisterPiece(
    const DestinationRam::Piece& piece) {
  if (!piece.mapped()) return absl::OkStatus();
  const UffdResult result = ops_->Unregister(piece.address, piece.bytes());
  if (result.ok()) return absl::OkStatus();
  // mmget_not_zero() fails with ENOMEM in userfaultfd_unregister().
  const bool gone = result.error == ENOMEM || result.error == ESRCH;
  const Region& region =
      layout().regions()[layout().RegionOf(piece.pages.first)];
  return absl::Status(
      gone ? absl::StatusCode::kAborted : absl::StatusCode::kInternal,
      absl::StrCat("cannot unregister region \"", region.name,
                   "\": ", ::strerrordesc_np(result.error),
                   gone ? "; the VMM's process is gone" : ""));
}

// Who gave memory up while it was registered has made every ioctl EAGAIN before
// he let go of the mapping's lock, and so before the ranges were unregistered.
void DestinationVm::ReadLastMessages() {
  const HostAddress somewhere = ram_.region(0).address;
  std::array<uffd_msg, kMaxFaultBatch> messages;
  for (int i = 0; i < kMaxInstallRetries; ++i) {
    while (ops_->Read(absl::MakeSpan(messages)).error == 0) {
    }
    const ByteCount unit = BytesIn(ram_.region(0).unit);
    const UffdResult probe = ops_->ZeroPage(somewhere, unit, /*wake=*/false);
    if (probe.error != EAGAIN) return;
    clock_.SleepFor(50 * kNanosPerMicro);
  }
}

absl::Status DestinationVm::StorePrecopied(absl::Span<const ReceivedRun> runs) {
  const Stage stage = stage_.load();
  if (stage != Stage::kPrecopy && stage != Stage::kDiscarded) {
    return WrongStage("StorePrecopied");
  }
  for (const ReceivedRun& run : runs) {
    if (absl::Status s = CheckRun(run); !s.ok()) return s;
  }
  if (!runs.empty() && !ram_.has_files()) {
    return absl::FailedPreconditionError(
        "precopied pages cannot be stored: the VMM's memory is private to it, "
        "and they have nowhere to wait");
  }
  stage_.store(Stage::kPrecopy);
  for (const ReceivedRun& run : runs) {
    ReceiveResult result = store_.Store(run);
    precopied_.fetch_add(result.received.value(), kRelaxed);
    discarded_.fetch_add(result.removed.value(), kRelaxed);
    if (!result.status.ok()) return std::move(result.status);
  }
  return absl::OkStatus();
}

absl::StatusOr<PageCount> DestinationVm::DiscardStale(PageBitmapView stale) {
  const Stage stage = stage_.load();
  if (stage != Stage::kPrecopy && stage != Stage::kDiscarded) {
    return WrongStage("DiscardStale");
  }
  if (stale.pages() != layout().pages()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the stale set is of ", ToString(stale.pages()),
                     ", the VM has ", ToString(layout().pages())));
  }
  stage_.store(Stage::kPrecopy);
  ReceiveResult result = store_.Discard(stale);
  discarded_.fetch_add(result.removed.value(), kRelaxed);
  if (!result.status.ok()) return std::move(result.status);
  stage_.store(Stage::kDiscarded);
  return result.removed;
}

absl::Status DestinationVm::NotServingYet(const char* call) const {
  const Stage stage = stage_.load();
  if (stage == Stage::kPrecopy || stage == Stage::kDiscarded) {
    return absl::OkStatus();
  }
  return WrongStage(call);
}

absl::Status DestinationVm::SetPullOrder(std::unique_ptr<PullOrder> order) {
  const absl::Status allowed = NotServingYet("SetPullOrder");
  if (allowed.ok()) order_ = std::move(order);
  return allowed;
}

absl::Status DestinationVm::RecordFaults(
    std::shared_ptr<FaultRecords> records) {
  const absl::Status allowed = NotServingYet("RecordFaults");
  if (allowed.ok()) records_ = std::move(records);
  return allowed;
}

absl::Status DestinationVm::StartServing(
    PageSource* source, uint64_t bulk_limit_bytes_per_second,
    std::function<void(absl::Status)> on_end, BulkShare* bulk_share) {
  if (stage_.load() != Stage::kDiscarded) return WrongStage("StartServing");
  pull_ = std::make_unique<BackgroundPull>(
      &ram_, state_.get(), order_.get(), &clock_, bulk_limit_bytes_per_second,
      [this, on_end = std::move(on_end)](absl::Status status) {
        // Received is not yet in place, where pages wait.
        if (status.ok() && !map_ahead_.AwaitNothingStaged()) return;
        on_end(EndStatus(std::move(status)));
      },
      bulk_share);
  absl::StatusOr<std::unique_ptr<FaultLoop>> fault_loop = FaultLoop::Create(
      {.ram = &ram_,
       .ops = ops_.get(),
       .state = state_.get(),
       .gate = &gate_,
       .changes = &changes_,
       .installer = &installer_,
       .order = order_.get(),
       .clock = &clock_,
       .records = records_.get(),
       .on_given_up =
           [this] {
             if (state_->missing().empty()) pull_->OnComplete();
           },
       .on_end =
           [this](absl::Status status) { pull_->Fail(std::move(status)); }});
  if (!fault_loop.ok()) return fault_loop.status();
  fault_loop_ = *std::move(fault_loop);
  pull_->SetSource(source);
  // Nothing is pending yet, so nothing is asked and nothing can fail.
  fault_loop_->SetSource(source).IgnoreError();
  served_.store(true);
  stage_.store(Stage::kServing);
  absl::Status started = pull_->Start();
  if (started.ok() && AnyOutOfSight()) {
    absl::Status ahead = map_ahead_.Start();
    // Without a thread for it the guest maps by touching, unless pages wait.
    if (ram_.has_staging()) started = std::move(ahead);
  }
  if (started.ok()) started = fault_loop_->Start();
  if (started.ok()) {
    map_ahead_.Go();
    return started;
  }
  // Nobody has been served yet.
  map_ahead_.Stop();
  pull_->Stop();
  served_.store(false);
  stage_.store(Stage::kDiscarded);
  return started;
}

absl::Status DestinationVm::StartBackground() {
  if (stage_.load() != Stage::kServing) return WrongStage("StartBackground");
  pull_->Enable();
  return absl::OkStatus();
}

void DestinationVm::SetBulkLimit(uint64_t bytes_per_second) {
  if (stage_.load() == Stage::kServing) pull_->SetLimit(bytes_per_second);
}

absl::Status DestinationVm::OnUrgentPages(absl::Span<const ReceivedRun> runs) {
  if (stage_.load() != Stage::kServing) return WrongStage("OnUrgentPages");
  if (runs.empty()) return NoPages();
  const absl::StatusOr<PageCount> pages = Validate(runs);
  if (!pages.ok()) return pages.status();
  if (pages->value() > kMaxUrgentPages) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the peer answered an urgent request with ", ToString(*pages)));
  }
  int64_t answered_ns = refused_answer_ns_.exchange(0, kRelaxed);
  if (answered_ns == 0) answered_ns = clock_.NowNanos();
  absl::Status status =
      InstallAll(runs, &DestinationVm::InstallUrgent, answered_ns, &faulted_);
  if (!status.ok()) refused_answer_ns_.store(answered_ns, kRelaxed);
  return status;
}

absl::Status DestinationVm::OnUrgentPagesStandingIn(
    absl::Span<const ReceivedRun> runs) {
  if (stage_.load() != Stage::kServing) return WrongStage("OnUrgentPages");
  PageCount pages;
  for (const ReceivedRun& run : runs) pages += run.pages.count;
  FaultLoop::StandIn stand_in(fault_loop_.get(), pages);
  absl::Status status = OnUrgentPages(runs);
  if (status.ok()) stand_in.Serve();
  return status;
}

absl::Status DestinationVm::OnBulkPages(absl::Span<const ReceivedRun> runs) {
  if (stage_.load() != Stage::kServing) return WrongStage("OnBulkPages");
  if (runs.empty()) return NoPages();
  absl::Status status = Validate(runs).status();
  if (status.ok()) {
    status = InstallAll(runs, &DestinationVm::InstallBulk, clock_.NowNanos(),
                        &background_);
  }
  if (!status.ok()) return status;
  PageCount zeros;
  for (const ReceivedRun& run : runs) {
    if (run.data.empty()) zeros += run.pages.count;
  }
  pull_->OnAnswer(runs.front().pages.first, BytesIn(zeros));
  return absl::OkStatus();
}

absl::Status DestinationVm::OnRecentlyDirtied(absl::Span<const PageRun> runs) {
  if (stage_.load() != Stage::kServing) return WrongStage("OnRecentlyDirtied");
  if (runs.size() > kRecentlyDirtiedRunsMax - dirtied_runs_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the peer named more than ", kRecentlyDirtiedRunsMax,
                     " runs of recently dirtied pages"));
  }
  PageCount pages;
  for (const PageRun& run : runs) {
    if (run.count.empty()) {
      return absl::InvalidArgumentError("the peer sent a run of no pages");
    }
    absl::Status inside = layout().Check(run.first, run.count);
    if (!inside.ok()) return inside;
    pages += run.count;
  }
  dirtied_runs_ += runs.size();
  // A list that names the same pages over and over would take the background
  // long to go through. One in order names none more than three times.
  const PageCount most(4 * layout().pages().value() + kRecentlyDirtiedRunsMax);
  if (pages > most - dirtied_pages_) return absl::OkStatus();
  dirtied_pages_ += pages;
  order_->OnRecentlyDirtied(runs);
  return absl::OkStatus();
}

void DestinationVm::OnSourceLost() {
  if (stage_.load() != Stage::kServing) return;
  pull_->SetSource(nullptr);
  fault_loop_->SetSource(nullptr).IgnoreError();  // asks nothing
  refused_answer_ns_.store(0, kRelaxed);
}

absl::Status DestinationVm::OnSourceBack(PageSource* source) {
  if (stage_.load() != Stage::kServing) return WrongStage("OnSourceBack");
  OnSourceLost();
  const absl::Status status = fault_loop_->SetSource(source);
  // Urgent first; and not at all if that did not work.
  if (status.ok()) pull_->SetSource(source);
  return status;
}

absl::Status DestinationVm::PoisonMissing(const std::atomic<bool>& give_up) {
  if (stage_.load() != Stage::kServing) return WrongStage("PoisonMissing");
  // Behind this the memory may be let go.
  if (!map_ahead_.AwaitNothingStaged(&give_up)) {
    return absl::CancelledError("told to stop while pages were put in place");
  }
  // In pieces: a page takes a system call, and all of RAM may be missing.
  constexpr PageCount kPiece{4096};
  for (std::optional<PageRun> run =
           state_->NextMissingRun(PageIndex(0), kPiece);
       run.has_value(); run = state_->NextMissingRun(run->end(), kPiece)) {
    if (give_up.load()) return absl::CancelledError("told to stop");
    absl::Status poisoned = installer_.Poison(*run);
    if (!poisoned.ok()) return poisoned;
  }
  fault_loop_->OnPoisoned();
  return absl::OkStatus();
}

absl::Status DestinationVm::Finish() {
  if (stage_.load() == Stage::kEnded) return absl::OkStatus();
  if (stage_.load() != Stage::kServing) return WrongStage("Finish");
  if (!state_->missing().empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the migration is not complete: ", ToString(state_->missing()),
        " are missing"));
  }
  if (ram_.AnyStaged()) {
    return absl::FailedPreconditionError(
        "the migration is not complete: pages are still being put in place");
  }
  StopThreads();
  stage_.store(Stage::kEnded);
  return UnregisterAll();
}

void DestinationVm::Abort(bool release) {
  if (stage_.load() != Stage::kEnded) StopThreads();
  const bool ended = stage_.exchange(Stage::kEnded) == Stage::kEnded;
  // A guest that runs must not find zeros where pages wait for it.
  const bool needed = served_.load() && ram_.AnyStaged();
  // If it fails the VMM is gone, or has unmapped its memory.
  if (release && !ended && !needed) UnregisterAll().IgnoreError();
}

DestinationCounters DestinationVm::counters() const {
  DestinationCounters counters;
  counters.total = layout().pages();
  counters.missing = state_->missing();
  counters.zero = state_->zero();
  counters.precopied = PageCount(Load(precopied_));
  counters.mapped_ahead = map_ahead_.done();
  counters.discarded = PageCount(Load(discarded_));
  counters.faulted = PageCount(Load(faulted_));
  counters.background = PageCount(Load(background_));
  counters.already_present = installer_.already_present();
  counters.unmapped_pages = installer_.unmapped();
  counters.install_retries = installer_.retries();
  if (served_.load()) AddServingCounters(&counters);
  return counters;
}

void DestinationVm::AddServingCounters(DestinationCounters* counters) const {
  const FaultCounters& faults = fault_loop_->counters();
  counters->faults = Load(faults.faults);
  counters->duplicate_faults = Load(faults.duplicates);
  counters->local_faults = Load(faults.local);
  counters->late_faults = Load(faults.late);
  counters->minor_faults = Load(faults.minor);
  counters->write_protect_faults = Load(faults.write_protect);
  counters->foreign_faults = Load(faults.foreign);
  counters->unexpected_events = Load(faults.unexpected_events);
  counters->deferred_faults = Load(faults.deferred);
  counters->overflowed_faults = Load(faults.overflowed);
  const MemoryChangeCounters& changes = changes_.counters();
  counters->given_up = PageCount(Load(changes.removed_pages));
  counters->removals = Load(changes.removals);
  counters->unmaps = Load(changes.unmaps);
  counters->remaps = Load(changes.remaps);
  counters->lost_pages = Load(faults.lost);
  counters->outstanding_faults = fault_loop_->outstanding();
  counters->urgent_requests = Load(faults.requests);
  counters->urgent_request_failures = Load(faults.request_failures);
  counters->bulk_requests = pull_->requests();
  counters->bulk_request_failures = pull_->failures();
}

absl::StatusOr<PageCount> DestinationVm::Validate(
    absl::Span<const ReceivedRun> runs) const {
  PageCount pages;
  for (const ReceivedRun& run : runs) {
    if (absl::Status s = CheckRun(run); !s.ok()) return s;
    const absl::StatusOr<PageCount> of_run = CountUnits(run.pages);
    if (!of_run.ok()) return of_run.status();
    pages += *of_run;
  }
  return pages;
}

absl::Status DestinationVm::CheckRun(const ReceivedRun& run) const {
  if (run.pages.count.empty()) {
    return absl::InvalidArgumentError("the peer sent a run of no pages");
  }
  absl::Status inside = layout().Check(run.pages.first, run.pages.count);
  if (!inside.ok()) return inside;
  // In the layout, so its bytes can be counted.
  if (!run.data.empty() &&
      run.data.size() != BytesIn(run.pages.count).value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the peer sent ", run.data.size(), " bytes for ", ToString(run.pages)));
  }
  return absl::OkStatus();
}

absl::StatusOr<PageCount> DestinationVm::CountUnits(PageRun run) const {
  if (ram_.largest_unit() == PageCount(1)) return run.count;
  PageCount units;
  PageIndex at = run.first;
  while (at < run.end()) {
    const PageRun unit = ram_.UnitOf(at);
    if (unit.first != at || unit.end() > run.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the peer sent ", ToString(run),
                       ", in which there is a part of the "
                       "huge page of ",
                       ToString(unit)));
    }
    units += PageCount(1);
    at = unit.end();
  }
  return units;
}

absl::Status DestinationVm::WrongStage(const char* call) const {
  constexpr const char* kNames[] = {"in precopy", "before serving", "serving",
                                    "ended"};
  return absl::FailedPreconditionError(
      absl::StrCat(call, " cannot be called: this destination is ",
                   kNames[static_cast<int>(stage_.load())]));
}

ReceiveResult DestinationVm::InstallUrgent(const ReceivedRun& run,
                                           int64_t answered_ns) {
  ReceiveResult result = run.data.empty()
                             ? installer_.InstallZero(run.pages)
                             : installer_.InstallData(run.pages, run.data);
  if (result.status.ok()) {
    ResolveAll(run.pages, answered_ns);
  } else {
    fault_loop_->OnReceived(run.pages, answered_ns);
  }
  return result;
}

ReceiveResult DestinationVm::InstallBulk(const ReceivedRun& run,
                                         int64_t answered_ns) {
  ReceiveResult result = run.data.empty()
                             ? installer_.AdmitZero(run.pages)
                             : installer_.InstallData(run.pages, run.data);
  fault_loop_->OnReceived(run.pages, answered_ns);
  return result;
}

absl::Status DestinationVm::InstallAll(absl::Span<const ReceivedRun> runs,
                                       Install install, int64_t answered_ns,
                                       std::atomic<uint64_t>* counter) {
  absl::Status status;
  for (const ReceivedRun& run : runs) {
    ReceiveResult result = (this->*install)(run, answered_ns);
    counter->fetch_add(result.received.value(), kRelaxed);
    status = std::move(result.status);
    if (!status.ok()) break;
  }
  if (absl::IsAborted(status)) pull_->Fail(status);
  if (state_->missing().empty()) pull_->OnComplete();
  return status;
}

void DestinationVm::ResolveAll(PageRun run, int64_t answered_ns) {
  const int64_t now_ns = clock_.NowNanos();
  for (PageIndex page = run.first; page < run.end();
       page = ram_.UnitOf(page).end()) {
    fault_loop_->Resolve(page, answered_ns, now_ns);
  }
}

bool DestinationVm::ShowsLife() {
  return !served_.load() || fault_loop_->ShowsLife();
}

LatencySnapshot DestinationVm::FaultLatency() const {
  return served_.load() ? fault_loop_->times().Latency() : LatencySnapshot();
}

FaultTimesSnapshot DestinationVm::FaultStages() const {
  if (!served_.load()) return {};
  return {.stages = fault_loop_->times().Stages(),
          .stalled_ns = static_cast<uint64_t>(fault_loop_->StalledNanos()),
          .threads = fault_loop_->Threads()};
}

absl::Status DestinationVm::EndStatus(absl::Status status) const {
  const uint64_t lost = Load(fault_loop_->counters().lost);
  if (!status.ok() || lost == 0) return status;
  return absl::DataLossError(absl::StrCat(
      lost,
      " pages that had been received vanished from the VM's memory file, "
      "and were poisoned"));
}

void DestinationVm::StopThreads() {
  map_ahead_.Stop();
  // First the loop: it reports to the other.
  if (fault_loop_ != nullptr) fault_loop_->Stop();
  if (pull_ != nullptr) pull_->Stop();
}

}  // namespace postcopy
