#include "cmd/demovm/demo_vmm.h"

#include <linux/userfaultfd.h>

#include <cstdio>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "dirtytrack/check.h"
#include "dirtytrack/slot_table.h"
#include "uffd/kernel_uffd.h"

namespace postcopy::demovm {
namespace {

constexpr absl::Duration kAttachTimeout = absl::Seconds(10);

GuestToAttach Describe(const GuestRam& ram, const DemoVmm::Options& options) {
  GuestToAttach guest{.vm_name = options.name, .role = options.role};
  for (const RamBlock& block : ram.blocks()) {
    guest.regions.push_back(
        {.name = block.region.name,
         .length = block.region.length,
         .memory_fd = block.memfd.get(),
         .fd_offset = block.fd_offset,
         .host_address = HostAddress(reinterpret_cast<uintptr_t>(block.host))});
  }
  return guest;
}

absl::Status HandedOver() {
  return absl::FailedPreconditionError(
      "the guest has been handed over: what is left here must not run");
}

void Log(const char* what) { std::fprintf(stderr, "demovm: %s\n", what); }

}  // namespace

absl::StatusOr<std::unique_ptr<DemoVmm>> DemoVmm::Attach(
    std::unique_ptr<Machine> machine, const Options& options) {
  std::unique_ptr<DemoVmm> vmm(new DemoVmm(std::move(machine), options.role));
  GuestToAttach guest = Describe(vmm->machine_->ram(), options);
  absl::Status prepared = options.role == VmmRole::kSource
                              ? vmm->AttachSource(guest, options.dirty_tracking)
                              : vmm->AttachDestination(guest);
  if (!prepared.ok()) return prepared;
  absl::StatusOr<std::unique_ptr<VmmClient>> client =
      VmmClient::Attach(options.socket_path, guest, kAttachTimeout);
  if (!client.ok()) return client.status();
  vmm->client_ = *std::move(client);
  DemoVmm* const self = vmm.get();
  vmm->serving_ = std::thread([self] {
    const absl::Status end = self->client_->Serve(*self);
    Log(end.ok() ? "detached from the daemon"
                 : std::string(end.message()).c_str());
    self->GoOnAlone();
  });
  return vmm;
}

absl::Status DemoVmm::AttachSource(GuestToAttach& guest,
                                   DirtyTracking tracking) {
  absl::Status attached = tracking == DirtyTracking::kLog
                              ? AttachDirtyLog(guest)
                              : AttachPagemap(guest);
  if (attached.ok()) guest_ = Guest::kRunning;
  return attached;
}

absl::Status DemoVmm::AttachPagemap(GuestToAttach& guest) {
  std::vector<HostRange> ranges;
  for (const RegionToAttach& region : guest.regions) {
    ranges.push_back({region.host_address, region.length});
  }
  absl::StatusOr<WriteTracking> tracking = WriteTracking::Create(ranges);
  if (!tracking.ok()) return tracking.status();
  write_tracking_.emplace(*std::move(tracking));
  pagemap_ = write_tracking_->TakePagemap();
  guest.pagemap_fd = pagemap_.get();
  return absl::OkStatus();
}

absl::Status DemoVmm::AttachDirtyLog(GuestToAttach& guest) {
  guest.slots = machine_->ram().slots();
  absl::StatusOr<DirtyLogSet> log =
      DirtyLogSet::Create(LogSlotsOf(guest.slots));
  if (!log.ok()) return log.status();
  absl::StatusOr<DirtyLogWriter> writer = log->NewWriter();
  if (!writer.ok()) return writer.status();
  dirty_log_.emplace(*std::move(log));
  dirty_writer_.emplace(*std::move(writer));
  guest.dirty_log_fd = dirty_log_->fd();
  return absl::OkStatus();
}

absl::Status DemoVmm::AttachDestination(GuestToAttach& guest) {
  absl::StatusOr<NewUserfaultfd> uffd =
      CreateUserfaultfd(UFFD_FEATURE_THREAD_ID);
  if (!uffd.ok()) return uffd.status();
  userfaultfd_ = std::move(uffd->fd);
  guest.userfaultfd = userfaultfd_.get();
  return absl::OkStatus();
}

DemoVmm::~DemoVmm() {
  if (client_ != nullptr) client_->Shutdown();
  if (serving_.joinable()) serving_.join();
}

absl::StatusOr<FinalReport> DemoVmm::Finish() {
  FinalReport report;
  {
    std::lock_guard lock(mutex_);
    finishing_ = true;
    report.progress = machine_->Progress();
    if (guest_ == Guest::kRunning) {
      if (absl::Status s = machine_->Pause(); !s.ok()) return s;
      guest_ = Guest::kPaused;
    }
    if (guest_ == Guest::kPaused) {
      report.progress = machine_->Progress();
      absl::StatusOr<GuestClaims> claims = machine_->Claims();
      if (!claims.ok()) return claims.status();
      // Before the connection ends: a page that is missing still has to come.
      report.verdict = CheckGuest(machine_->ram(), *claims);
    }
  }
  client_->Shutdown();
  serving_.join();
  return report;
}

void DemoVmm::GoOnAlone() {
  std::lock_guard lock(mutex_);
  if (guest_ != Guest::kPaused || finishing_ || role_ != VmmRole::kSource) {
    return;
  }
  if (state_saved_) {
    Log("the daemon has gone in the middle of a hand-over: the guest stays "
        "paused, since it may run at the destination");
    return;
  }
  // Nobody has its device state, so it runs nowhere else.
  const absl::Status resumed = machine_->Resume();
  if (resumed.ok()) guest_ = Guest::kRunning;
  Log(resumed.ok() ? "the daemon has gone: the guest goes on here"
                   : "the daemon has gone and the guest cannot be resumed");
}

// --- What the daemon asks.

absl::Status DemoVmm::Collect() {
  return machine_->CollectDirty([this](SlotId slot, uint64_t first_word,
                                       absl::Span<const uint64_t> words) {
    const bool merged = dirty_writer_->MergeWords(slot, first_word, words);
    POSTCOPY_CHECK(merged);
  });
}

absl::Status DemoVmm::StartDirtyLogging() {
  std::lock_guard lock(mutex_);
  if (logging_) return absl::OkStatus();
  if (!dirty_writer_.has_value()) {
    return absl::FailedPreconditionError("this VM keeps no dirty log");
  }
  if (absl::Status s = machine_->StartDirtyLogging(); !s.ok()) return s;
  logging_ = true;
  return absl::OkStatus();
}

absl::Status DemoVmm::SyncDirtyLog() {
  std::lock_guard lock(mutex_);
  if (!logging_) {
    return absl::FailedPreconditionError("dirty pages are not being logged");
  }
  return Collect();
}

absl::Status DemoVmm::StopDirtyLogging() {
  std::lock_guard lock(mutex_);
  if (!logging_) return absl::OkStatus();
  logging_ = false;
  return machine_->StopDirtyLogging();
}

absl::Status DemoVmm::PauseGuest() {
  std::lock_guard lock(mutex_);
  if (guest_ == Guest::kHandedOver) return HandedOver();
  if (guest_ == Guest::kRunning) {
    if (absl::Status s = machine_->Pause(); !s.ok()) return s;
    guest_ = Guest::kPaused;
  }
  return logging_ ? Collect() : absl::OkStatus();
}

absl::StatusOr<std::string> DemoVmm::SaveDeviceState() {
  std::lock_guard lock(mutex_);
  if (guest_ == Guest::kHandedOver) return HandedOver();
  absl::StatusOr<std::string> state = machine_->SaveState();
  // From here on the guest may be another host's.
  state_saved_ = state.ok();
  return state;
}

absl::Status DemoVmm::LoadDeviceState(absl::string_view state) {
  std::lock_guard lock(mutex_);
  if (absl::Status s = machine_->LoadState(state); !s.ok()) return s;
  guest_ = Guest::kPaused;
  return absl::OkStatus();
}

absl::Status DemoVmm::ResumeGuest() {
  std::lock_guard lock(mutex_);
  if (guest_ == Guest::kHandedOver) return HandedOver();
  // A pause that failed has left it running.
  if (guest_ == Guest::kRunning) return absl::OkStatus();
  if (absl::Status s = machine_->Resume(); !s.ok()) return s;
  guest_ = Guest::kRunning;
  state_saved_ = false;
  return absl::OkStatus();
}

void DemoVmm::MigrationEnded(bool completed) {
  std::lock_guard lock(mutex_);
  // Told to a source: what is left here is not the guest any more.
  if (completed && role_ == VmmRole::kSource) guest_ = Guest::kHandedOver;
  Log(completed ? "the migration is complete" : "the migration was given up");
}

}  // namespace postcopy::demovm
