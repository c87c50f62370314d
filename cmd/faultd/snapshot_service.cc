#include "cmd/faultd/snapshot_service.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/faultd/served_vm_totals.h"
#include "cmd/metrics/vm_metrics.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/start_thread.h"
#include "uffd/data_plane_client.h"
#include "uffd/fault_times.h"
#include "uffd/kernel_uffd.h"
#include "uffd/remote_snapshot.h"
#include "uffd/snapshot_file.h"
#include "uffd/snapshot_source.h"
#include "uffd/waiting_threads.h"

namespace postcopy {
namespace {

std::string NameOf(uint64_t id, pid_t pid) {
  return absl::StrCat("VM ", id, " (process ", pid, ")");
}

std::vector<SnapshotRegion> RegionsOf(const FirecrackerVm& vm) {
  std::vector<SnapshotRegion> regions;
  for (const FirecrackerRegion& region : vm.regions) {
    regions.push_back({.host_address = region.host_address,
                       .length = region.size,
                       .file_offset = region.offset,
                       .page_size = region.page_size});
  }
  return regions;
}

// Where the time went; empty if nobody waited.
std::string WaitSummary(const FaultTimesSnapshot& times) {
  if (times.stalled_ns == 0) return "";
  const auto p99 = [&](FaultStage stage) {
    return times.stage(stage).PercentileNs(99) / kNanosPerMicro;
  };
  std::string summary = absl::StrCat(
      "; waited ", times.stalled_ns / kNanosPerMicro, " us in all (p99: read ",
      p99(FaultStage::kReading), ", ask ", p99(FaultStage::kAsking),
      ", answer ", p99(FaultStage::kAnswering), ", install ",
      p99(FaultStage::kInstalling), " us)");
  const std::vector<FaultingThread>& threads = times.threads.threads;
  const auto longest =
      std::max_element(threads.begin(), threads.end(),
                       [](const FaultingThread& a, const FaultingThread& b) {
                         return a.wait_ns < b.wait_ns;
                       });
  if (longest != threads.end()) {
    absl::StrAppend(&summary, ", most of all thread ", longest->id, ": ",
                    longest->wait_ns / kNanosPerMicro, " us in ",
                    longest->faults, " faults");
  }
  return summary;
}

std::string Summary(const SnapshotVm& vm) {
  const DestinationCounters pages = vm.counters();
  const LatencySnapshot latency = vm.FaultLatency();
  const auto micros = [&](double percent) {
    return latency.PercentileNs(percent) / kNanosPerMicro;
  };
  return absl::StrCat(
      pages.faulted.value(), " pages on demand (p50 ", micros(50), " us, p99 ",
      micros(99), " us), ", pages.background.value(), " ahead of it, ",
      pages.given_up.value(), " given up, ", pages.missing.value(),
      " never wanted", WaitSummary(vm.FaultStages()));
}

VmTotals TotalsOf(const SnapshotVm& vm, bool missing) {
  VmTotals totals =
      TotalsOf(vm.counters(), vm.FaultLatency(), vm.FaultStages(), missing);
  totals[VmCounter::kSourceErrors] = vm.source_errors();
  return totals;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SnapshotService>> SnapshotService::Create(
    Options options) {
  std::unique_ptr<SnapshotService> service(
      new SnapshotService(std::move(options)));
  SnapshotService* const self = service.get();
  absl::Status ready = self->Look();
  if (ready.ok()) ready = self->LoadWorkingSet();
  if (!ready.ok()) return ready;
  absl::StatusOr<std::thread> undertaker =
      StartThread([self] { self->Bury(); });
  if (!undertaker.ok()) return undertaker.status();
  service->undertaker_ = *std::move(undertaker);
  auto listener = FirecrackerListener::Create(
      {.socket_path = self->options_.socket_path,
       .inherited_socket = self->options_.inherited_socket,
       .allowed_uids = self->options_.allowed_uids,
       .vms_max = self->options_.vms_max,
       .on_attach =
           [self](FirecrackerVm vm) { return self->Attach(std::move(vm)); },
       .on_detach = [self](uint64_t id) { self->Detach(id); },
       .on_refuse = [self](const absl::Status& why) { self->Refuse(why); }});
  if (!listener.ok()) return listener.status();
  service->listener_ = *std::move(listener);
  return service;
}

absl::Status SnapshotService::Look() {
  const bool remote = !options_.source_address.empty();
  if (remote == !options_.snapshot_path.empty() ||
      remote == options_.source_name.empty()) {
    return absl::InvalidArgumentError(
        "VMs are restored either from a file of this host or from a snapshot "
        "that a source serves: give the address of that source and what it "
        "calls the snapshot");
  }
  return remote ? LookAtSource() : LookAtFile();
}

absl::Status SnapshotService::LookAtFile() {
  const absl::StatusOr<SnapshotFile> file =
      SnapshotFile::Open(options_.snapshot_path, options_.access);
  if (!file.ok()) return file.status();
  snapshot_bytes_ = file->size();
  snapshot_name_ = options_.snapshot_path;
  return absl::OkStatus();
}

std::unique_ptr<SnapshotDialer> SnapshotService::NewDialer() const {
  const std::string& address = options_.source_address;
  return NewGrpcSnapshotDialer(
      address,
      [dialling = options_.dialling, address] {
        return dialling.CredentialsFor(address);
      },
      options_.source_name);
}

absl::Status SnapshotService::LookAtSource() {
  const std::unique_ptr<SnapshotDialer> dialer = NewDialer();
  snapshot_name_ = dialer->name();
  const absl::StatusOr<OpenedSnapshot> opened = dialer->Open();
  if (opened.ok()) {
    snapshot_bytes_ = opened->size;
    return absl::OkStatus();
  }
  const bool may_pass = absl::IsUnavailable(opened.status()) ||
                        absl::IsDeadlineExceeded(opened.status()) ||
                        absl::IsResourceExhausted(opened.status());
  if (!may_pass || !options_.working_set_path.empty()) return opened.status();
  Log(LogSeverity::kWarning,
      absl::StrCat("VMs are refused for now: ", opened.status().message()));
  return absl::OkStatus();
}

OpenSnapshotPages SnapshotService::OpenerOfSnapshot() const {
  if (options_.source_address.empty()) {
    return OpenSnapshotAt(options_.snapshot_path, options_.access);
  }
  return [this](std::vector<SnapshotExtent> extents, SnapshotSink sink) {
    return RemoteSnapshot::Create(NewDialer(), std::move(extents),
                                  std::move(sink), RemoteSnapshot::Options());
  };
}

absl::Status SnapshotService::LoadWorkingSet() {
  const std::string& path = options_.working_set_path;
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<WorkingSet> set = ReadWorkingSet(path);
  if (absl::IsNotFound(set.status())) return CheckWorkingSetFolder(path);
  if (!set.ok()) return set.status();
  if (set->snapshot_bytes != snapshot_bytes_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "working set ", path, ": it was recorded from a snapshot of ",
        ToString(set->snapshot_bytes), ", and ", snapshot_name_, " has ",
        ToString(snapshot_bytes_),
        "; name the file that belongs to this snapshot, or remove this one: "
        "then the next VM records it anew"));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  working_set_ = std::make_shared<const WorkingSet>(*std::move(set));
  return absl::OkStatus();
}

bool SnapshotService::ClaimRecording() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (options_.working_set_path.empty() || working_set_ != nullptr ||
      recording_) {
    return false;
  }
  recording_ = true;
  return true;
}

void SnapshotService::EndRecording(const std::string& name,
                                   WorkingSet recorded) {
  std::shared_ptr<const WorkingSet> set;
  std::string sentence;
  LogSeverity severity = LogSeverity::kInfo;
  if (!recorded.runs.empty()) {
    recorded.snapshot_bytes = snapshot_bytes_;
    const absl::Status written =
        WriteWorkingSet(options_.working_set_path, recorded);
    if (!written.ok()) severity = LogSeverity::kWarning;
    sentence = written.ok()
                   ? absl::StrCat(name, ": what it touched is recorded in ",
                                  options_.working_set_path, ": ",
                                  recorded.runs.size(), " runs of pages")
                   : absl::StrCat(name, ": ", written.message());
    // Without the file it serves those who come all the same.
    set = std::make_shared<const WorkingSet>(std::move(recorded));
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    working_set_ = std::move(set);
    recording_ = false;
  }
  if (!sentence.empty()) Log(severity, sentence);
}

absl::StatusOr<std::unique_ptr<SnapshotVm>> SnapshotService::Serve(
    FirecrackerVm vm, const std::string& name, bool records) {
  absl::StatusOr<std::unique_ptr<KernelUffd>> uffd =
      KernelUffd::Adopt(std::move(vm.userfaultfd));
  if (!uffd.ok()) return uffd.status();
  const std::vector<SnapshotRegion> regions = RegionsOf(vm);
  std::shared_ptr<const WorkingSet> working_set;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    working_set = working_set_;
  }
  const auto taken = std::make_shared<std::atomic<bool>>(false);
  absl::StatusOr<std::unique_ptr<SnapshotVm>> served = SnapshotVm::Create(
      OpenerOfSnapshot(), regions, *std::move(uffd),
      {.prefetch = options_.prefetch,
       .prefetch_bytes_per_second = options_.prefetch_bytes_per_second,
       .working_set = std::move(working_set),
       .record_working_set = records,
       .records = RecordsOf(name, regions, taken),
       .bulk_share = options_.bulk_share,
       .on_end =
           [this, name](const absl::Status& end) {
             if (end.ok()) {
               Log(absl::StrCat(name, " has all its pages"));
             } else {
               Log(LogSeverity::kError,
                   absl::StrCat(name, ": ", end.message()));
             }
           },
       .on_source =
           [this, name](const absl::Status& why) {
             if (why.ok()) {
               Log(absl::StrCat(name, ": the snapshot's source is back"));
             } else {
               Log(LogSeverity::kWarning,
                   absl::StrCat(name, ": threads that touch a missing page ",
                                "wait: ", why.message()));
             }
           },
       .on_source_error =
           [this, name](const absl::Status& why, uint64_t errors) {
             Log(LogSeverity::kWarning,
                 absl::StrCat(
                     name, ": ", snapshot_name_, " ended a session, ", errors,
                     errors == 1 ? " so far" : " in all",
                     ": what it did not give is asked for again and again; ",
                     absl::IsCancelled(why) ? "its log says why"
                                            : std::string(why.message())));
           }},
      Clock::Monotonic());
  taken->store(served.ok());
  return served;
}

std::shared_ptr<FaultRecords> SnapshotService::RecordsOf(
    const std::string& name, const std::vector<SnapshotRegion>& regions,
    std::shared_ptr<const std::atomic<bool>> taken) const {
  if (options_.recorder == nullptr) return nullptr;
  PageCount pages;
  for (const SnapshotRegion& region : regions) pages += PagesIn(region.length);
  return options_.recorder->Record(name, pages, std::move(taken));
}

absl::Status SnapshotService::Attach(FirecrackerVm vm) {
  if (!taking_.load()) {
    return absl::UnavailableError(
        "this faultd is ending: restore the VM on another host, or when it "
        "runs again");
  }
  if (absl::Status room = CheckRoom(); !room.ok()) return room;
  const uint64_t id = vm.id;
  const pid_t pid = vm.pid;
  const std::string name = NameOf(id, pid);
  const bool records = ClaimRecording();
  absl::StatusOr<std::unique_ptr<SnapshotVm>> served =
      Serve(std::move(vm), name, records);
  if (!served.ok()) {
    if (records) EndRecording(name, {});
    return served.status();
  }
  std::string sentence = absl::StrCat(name, " is served from ", snapshot_name_);
  if (records) absl::StrAppend(&sentence, ", and what it touches is recorded");
  if ((*served)->ignored_working_set()) {
    absl::StrAppend(&sentence, ", without the working set, which is of a VM ",
                    "with another amount of memory");
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    attached_[id] = {pid, *std::move(served), records};
    ++taken_;
  }
  Log(sentence);
  return absl::OkStatus();
}

absl::Status SnapshotService::CheckRoom() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t vms = attached_.size() + leaving_;
  if (vms < options_.vms_max) return absl::OkStatus();
  return absl::ResourceExhaustedError(TooManyVms(vms, leaving_));
}

void SnapshotService::Detach(uint64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  gone_.emplace_back(id, std::move(attached_.extract(id).mapped()));
  ++leaving_;
  changed_.notify_all();
}

void SnapshotService::Refuse(const absl::Status& why) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++refused_;
  }
  const int64_t now_ns = Clock::Monotonic()->NowNanos();
  if (now_ns - second_began_ns_ >= kNanosPerSecond) {
    if (refusals_untold_ > 0) {
      Log(LogSeverity::kWarning,
          absl::StrCat(refusals_untold_, " more VMs were refused"));
    }
    second_began_ns_ = now_ns;
    refusals_in_second_ = 0;
    refusals_untold_ = 0;
  }
  if (++refusals_in_second_ > kRefusalsLoggedPerSecond) {
    ++refusals_untold_;
    return;
  }
  Log(LogSeverity::kWarning, absl::StrCat("a VM is refused: ", why.message()));
}

void SnapshotService::Bury() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closing_ || !gone_.empty(); });
    if (gone_.empty()) return;
    // It stays there, to be counted; others are only put behind it.
    const auto& [id, first] = gone_.front();
    lock.unlock();
    first.vm->Stop();  // so that the last page is counted
    const std::string name = NameOf(id, first.pid);
    if (first.records) EndRecording(name, first.vm->recorded());
    Log(absl::StrCat(name, " has gone: ", Summary(*first.vm)));
    const VmTotals totals = TotalsOf(*first.vm, /*missing=*/false);
    lock.lock();
    forgotten_.Add(totals);
    Attached gone = std::move(gone_.front().second);
    gone_.pop_front();
    lock.unlock();
    gone.vm.reset();
    lock.lock();
    --leaving_;
  }
}

bool SnapshotService::ShowsLife() {
  bool all = listener_->ShowsLife();
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [id, attached] : attached_) {
    if (!attached.vm->ShowsLife()) all = false;
  }
  return all;
}

size_t SnapshotService::vms() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return attached_.size();
}

size_t SnapshotService::leaving() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return leaving_;
}

DaemonLoad SnapshotService::Load() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  DaemonLoad load = {.vms = attached_.size(), .needing = attached_.size()};
  for (const auto& [id, vm] : attached_) {
    if (vm.vm->source_fails()) ++load.failing;
  }
  return load;
}

void SnapshotService::AddMetrics(MetricFamilies& families) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  VmTotals totals = forgotten_;
  for (const auto& [id, vm] : attached_) {
    totals.Add(TotalsOf(*vm.vm, /*missing=*/true));
  }
  for (const auto& [id, vm] : gone_) {
    totals.Add(TotalsOf(*vm.vm, /*missing=*/false));
  }
  AddVmMetrics("snapshot", totals, families);
  AddAttachMetrics("snapshot",
                   {.attached = attached_.size(),
                    .attempts = taken_ + refused_,
                    .refusals = refused_},
                   families);
}

void SnapshotService::Log(LogSeverity severity,
                          const std::string& sentence) const {
  if (options_.log) options_.log(severity, sentence);
}

void SnapshotService::Shutdown() {
  if (listener_ != nullptr) listener_->Shutdown();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    changed_.notify_all();
  }
  if (undertaker_.joinable()) undertaker_.join();
}

}  // namespace postcopy
