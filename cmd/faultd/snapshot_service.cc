#include "cmd/faultd/snapshot_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/start_thread.h"
#include "uffd/kernel_uffd.h"
#include "uffd/snapshot_file.h"

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

std::string Summary(const SnapshotVm& vm) {
  const DestinationCounters pages = vm.counters();
  const LatencySnapshot latency = vm.FaultLatency();
  const auto micros = [&](double percent) {
    return latency.PercentileNs(percent) / kNanosPerMicro;
  };
  return absl::StrCat(pages.faulted.value(), " pages on demand (p50 ",
                      micros(50), " us, p99 ", micros(99), " us), ",
                      pages.background.value(), " ahead of it, ",
                      pages.given_up.value(), " given up, ",
                      pages.missing.value(), " never wanted");
}

}  // namespace

absl::StatusOr<std::unique_ptr<SnapshotService>> SnapshotService::Create(
    Options options) {
  // A wrong path is told now, and not to the first VM.
  const absl::StatusOr<SnapshotFile> file =
      SnapshotFile::Open(options.snapshot_path, options.access);
  if (!file.ok()) return file.status();
  std::unique_ptr<SnapshotService> service(
      new SnapshotService(std::move(options)));
  SnapshotService* const self = service.get();
  absl::StatusOr<std::thread> undertaker =
      StartThread([self] { self->Bury(); });
  if (!undertaker.ok()) return undertaker.status();
  service->undertaker_ = *std::move(undertaker);
  auto listener = FirecrackerListener::Create(
      {.socket_path = self->options_.socket_path,
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

absl::Status SnapshotService::Attach(FirecrackerVm vm) {
  absl::StatusOr<std::unique_ptr<KernelUffd>> uffd =
      KernelUffd::Adopt(std::move(vm.userfaultfd));
  if (!uffd.ok()) return uffd.status();
  const std::string name = NameOf(vm.id, vm.pid);
  absl::StatusOr<std::unique_ptr<SnapshotVm>> served = SnapshotVm::Create(
      options_.snapshot_path, RegionsOf(vm), *std::move(uffd),
      {.access = options_.access,
       .prefetch = options_.prefetch,
       .prefetch_bytes_per_second = options_.prefetch_bytes_per_second,
       .bulk_share = options_.bulk_share,
       .on_end =
           [this, name](const absl::Status& end) {
             Log(end.ok() ? absl::StrCat(name, " has all its pages")
                          : absl::StrCat(name, ": ", end.message()));
           }},
      Clock::Monotonic());
  if (!served.ok()) return served.status();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    attached_[vm.id] = {vm.pid, *std::move(served)};
  }
  Log(absl::StrCat(name, " is served from ", options_.snapshot_path));
  return absl::OkStatus();
}

void SnapshotService::Detach(uint64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  gone_.emplace_back(id, std::move(attached_.extract(id).mapped()));
  changed_.notify_all();
}

void SnapshotService::Refuse(const absl::Status& why) {
  const int64_t now_ns = Clock::Monotonic()->NowNanos();
  if (now_ns - second_began_ns_ >= kNanosPerSecond) {
    if (refusals_untold_ > 0) {
      Log(absl::StrCat(refusals_untold_, " more VMs were refused"));
    }
    second_began_ns_ = now_ns;
    refusals_in_second_ = 0;
    refusals_untold_ = 0;
  }
  if (++refusals_in_second_ > kRefusalsLoggedPerSecond) {
    ++refusals_untold_;
    return;
  }
  Log(absl::StrCat("a VM is refused: ", why.message()));
}

void SnapshotService::Bury() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closing_ || !gone_.empty(); });
    if (gone_.empty()) return;
    auto [id, gone] = std::move(gone_.front());
    gone_.pop_front();
    lock.unlock();
    gone.vm->Stop();  // so that the last page is counted
    Log(absl::StrCat(NameOf(id, gone.pid), " has gone: ", Summary(*gone.vm)));
    gone.vm.reset();
    lock.lock();
  }
}

size_t SnapshotService::vms() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return attached_.size();
}

void SnapshotService::Log(const std::string& sentence) const {
  if (options_.log) options_.log(sentence);
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
