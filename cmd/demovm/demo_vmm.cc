#include "cmd/demovm/demo_vmm.h"

#include <linux/userfaultfd.h>

#include <cstdio>
#include <utility>

#include "dirtytrack/check.h"

namespace postcopy::demovm {
namespace {

constexpr uint32_t kAttachTimeoutMillis = 10'000;

void Log(const char* what) { std::fprintf(stderr, "demovm: %s\n", what); }

// Beside missing pages.
uint64_t FeaturesFor(const DemoVmm::Options& options) {
  const uint64_t minor = options.minor_faults ? UFFD_FEATURE_MINOR_SHMEM : 0;
  return UFFD_FEATURE_THREAD_ID | minor;
}

uint32_t FlagsOf(const RamBlock& block) {
  const bool huge = block.region.page_size != ByteCount(kPageSize);
  return (block.memfd.valid() ? 0 : POSTCOPY_VMM_REGION_PRIVATE) |
         (huge ? POSTCOPY_VMM_REGION_HUGE_PAGES : 0);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DemoVmm>> DemoVmm::Attach(
    std::unique_ptr<Machine> machine, const Options& options) {
  std::unique_ptr<DemoVmm> vmm(new DemoVmm(std::move(machine), options));
  absl::Status connected = vmm->Connect(options);
  if (!connected.ok()) return connected;
  DemoVmm* const self = vmm.get();
  vmm->serving_ = std::thread([self] { self->Serve(); });
  return vmm;
}

absl::Status DemoVmm::Connect(const Options& options) {
  handle_.reset(postcopy_vmm_new());
  if (handle_ == nullptr) return absl::ResourceExhaustedError("no memory");
  if (absl::Status s = Describe(); !s.ok()) return s;
  const bool source = role_ == VmmRole::kSource;
  if (source) guest_ = Guest::kRunning;
  postcopy_vmm_options how = {
      .size = sizeof(how),
      .socket_path = options.socket_path.c_str(),
      .vm_name = options.name.c_str(),
      .role = source ? POSTCOPY_VMM_SOURCE : POSTCOPY_VMM_DESTINATION,
      .userfaultfd_features = source ? 0 : FeaturesFor(options),
      .timeout_ms = kAttachTimeoutMillis};
  if (source) {
    how.dirty_tracking = tracking_ == DirtyTracking::kLog
                             ? POSTCOPY_VMM_DIRTY_LOG
                             : POSTCOPY_VMM_DIRTY_PAGEMAP;
  }
  const postcopy_vmm_callbacks callbacks = Callbacks();
  const int code = postcopy_vmm_attach(handle_.get(), &how, &callbacks);
  if (code != POSTCOPY_VMM_OK) return Error(code);
  const bool marks = source && tracking_ == DirtyTracking::kLog;
  return marks ? MakeMarker() : absl::OkStatus();
}

absl::Status DemoVmm::Describe() {
  for (const RamBlock& block : machine_->ram().blocks()) {
    const postcopy_vmm_region region = {.size = sizeof(region),
                                        .name = block.region.name.c_str(),
                                        .address = block.host,
                                        .length = block.region.length.value(),
                                        .memory_fd = block.memfd.get(),
                                        .flags = FlagsOf(block),
                                        .memory_offset = block.fd_offset};
    const postcopy_vmm_slot slot = {
        .size = sizeof(slot),
        .address_space = block.slot.id.address_space,
        .slot = block.slot.id.slot,
        .guest_physical_address = block.slot.guest_physical_address,
        .ram_offset = block.slot.start.value(),
        .length = block.slot.length.value()};
    int code = postcopy_vmm_add_region(handle_.get(), &region);
    if (code == POSTCOPY_VMM_OK) {
      code = postcopy_vmm_add_slot(handle_.get(), &slot);
    }
    if (code != POSTCOPY_VMM_OK) return Error(code);
  }
  return absl::OkStatus();
}

absl::Status DemoVmm::MakeMarker() {
  postcopy_vmm_marker* marker;
  const int code = postcopy_vmm_marker_new(handle_.get(), &marker);
  marker_.reset(marker);
  if (code == POSTCOPY_VMM_OK) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(code),
                      "there is no marker for the dirty log");
}

void DemoVmm::Serve() {
  const int end = postcopy_vmm_run(handle_.get());
  const bool detached =
      end == POSTCOPY_VMM_UNAVAILABLE || end == POSTCOPY_VMM_CANCELLED;
  Log(detached ? "detached from the daemon"
               : postcopy_vmm_message(handle_.get()));
  GoOnAlone();
}

void DemoVmm::FreeHandle::operator()(postcopy_vmm* handle) const {
  postcopy_vmm_discard_guest(handle);
  postcopy_vmm_free(handle);
}

DemoVmm::~DemoVmm() {
  if (!serving_.joinable()) return;
  postcopy_vmm_stop(handle_.get());
  serving_.join();
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
  postcopy_vmm_stop(handle_.get());
  serving_.join();
  return report;
}

void DemoVmm::GoOnAlone() {
  std::lock_guard lock(mutex_);
  if (guest_ != Guest::kPaused || finishing_ || role_ != VmmRole::kSource) {
    return;
  }
  if (postcopy_vmm_guest_place(handle_.get()) != POSTCOPY_VMM_GUEST_HERE) {
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

absl::Status DemoVmm::Error(int code) const {
  return absl::Status(static_cast<absl::StatusCode>(code),
                      postcopy_vmm_message(handle_.get()));
}

int DemoVmm::Tell(postcopy_vmm* handle, const absl::Status& status) {
  if (!status.ok()) {
    postcopy_vmm_explain(handle, std::string(status.message()).c_str());
  }
  return static_cast<int>(status.code());
}

template <absl::Status (DemoVmm::*kMethod)()>
int DemoVmm::Answer(void* context, postcopy_vmm* handle) {
  return Tell(handle, (static_cast<DemoVmm*>(context)->*kMethod)());
}

postcopy_vmm_callbacks DemoVmm::Callbacks() {
  return {.size = sizeof(postcopy_vmm_callbacks),
          .context = this,
          .start_dirty_logging = &Answer<&DemoVmm::StartDirtyLogging>,
          .sync_dirty_log = &Answer<&DemoVmm::SyncDirtyLog>,
          .stop_dirty_logging = &Answer<&DemoVmm::StopDirtyLogging>,
          .pause_guest = &Answer<&DemoVmm::PauseGuest>,
          .save_device_state = &Answer<&DemoVmm::SaveDeviceState>,
          .load_device_state =
              [](void* context, postcopy_vmm* handle, const void* state,
                 size_t length) {
                return Tell(handle,
                            static_cast<DemoVmm*>(context)->LoadDeviceState(
                                {static_cast<const char*>(state), length}));
              },
          .resume_guest = &Answer<&DemoVmm::ResumeGuest>,
          .migration_ended =
              [](void* context, postcopy_vmm* /*handle*/, int completed) {
                static_cast<DemoVmm*>(context)->MigrationEnded(completed != 0);
              }};
}

absl::Status DemoVmm::Collect() {
  return machine_->CollectDirty([this](SlotId slot, uint64_t first_word,
                                       absl::Span<const uint64_t> words) {
    const int marked = postcopy_vmm_mark_bitmap(
        marker_.get(), uint32_t{slot.address_space} << 16 | slot.slot,
        first_word, words.data(), words.size());
    POSTCOPY_CHECK(marked == POSTCOPY_VMM_OK);
  });
}

absl::Status DemoVmm::StartDirtyLogging() {
  std::lock_guard lock(mutex_);
  if (logging_) return absl::OkStatus();
  if (marker_ == nullptr) {
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
  if (guest_ == Guest::kRunning) {
    if (absl::Status s = machine_->Pause(); !s.ok()) return s;
    guest_ = Guest::kPaused;
  }
  return logging_ ? Collect() : absl::OkStatus();
}

absl::Status DemoVmm::SaveDeviceState() {
  std::lock_guard lock(mutex_);
  absl::StatusOr<std::string> state = machine_->SaveState();
  if (!state.ok()) return state.status();
  // If it does not fit, the library answers so.
  postcopy_vmm_append_device_state(handle_.get(), state->data(), state->size());
  return absl::OkStatus();
}

absl::Status DemoVmm::LoadDeviceState(absl::string_view state) {
  std::lock_guard lock(mutex_);
  if (absl::Status s = machine_->LoadState(state); !s.ok()) return s;
  guest_ = Guest::kPaused;
  return absl::OkStatus();
}

absl::Status DemoVmm::ResumeGuest() {
  std::lock_guard lock(mutex_);
  // A pause that failed has left it running.
  if (guest_ == Guest::kRunning) return absl::OkStatus();
  if (absl::Status s = machine_->Resume(); !s.ok()) return s;
  guest_ = Guest::kRunning;
  return absl::OkStatus();
}

void DemoVmm::MigrationEnded(bool completed) {
  std::lock_guard lock(mutex_);
  // Told to a source: what is left here is not the guest any more.
  if (completed && role_ == VmmRole::kSource) guest_ = Guest::kHandedOver;
  Log(completed ? "the migration is complete" : "the migration was given up");
}

}  // namespace postcopy::demovm
