#include "cmd/faultreplay/replay_vmm.h"

#include <linux/userfaultfd.h>

#include "dirtytrack/check.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {
namespace {

constexpr uint32_t kAttachTimeoutMillis = 10'000;
// The library numbers the slots as the regions; there is one.
constexpr uint32_t kSlot = 0;

}  // namespace

absl::StatusOr<std::unique_ptr<ReplayVmm>> ReplayVmm::Attach(Options options) {
  std::unique_ptr<ReplayVmm> vmm(new ReplayVmm(std::move(options)));
  if (absl::Status s = vmm->Connect(); !s.ok()) return s;
  absl::StatusOr<std::thread> serving =
      StartThread([self = vmm.get()] { postcopy_vmm_run(self->handle_); });
  if (!serving.ok()) return serving.status();
  vmm->serving_ = *std::move(serving);
  return vmm;
}

absl::Status ReplayVmm::Connect() {
  handle_ = postcopy_vmm_new();
  if (handle_ == nullptr) return absl::ResourceExhaustedError("no memory");
  const postcopy_vmm_region region = {.size = sizeof(region),
                                      .name = "ram",
                                      .address = options_.address,
                                      .length = options_.length.value(),
                                      .memory_fd = options_.memory_fd};
  const postcopy_vmm_options how = {
      .size = sizeof(how),
      .socket_path = options_.socket_path.c_str(),
      .vm_name = options_.vm_name.c_str(),
      .role = static_cast<uint32_t>(options_.source ? POSTCOPY_VMM_SOURCE
                                                    : POSTCOPY_VMM_DESTINATION),
      .dirty_tracking =
          static_cast<uint32_t>(options_.source ? POSTCOPY_VMM_DIRTY_LOG : 0),
      .userfaultfd_features =
          static_cast<uint64_t>(options_.source ? 0 : UFFD_FEATURE_THREAD_ID),
      .timeout_ms = kAttachTimeoutMillis};
  const postcopy_vmm_callbacks callbacks = Callbacks();
  int code = postcopy_vmm_add_region(handle_, &region);
  if (code == POSTCOPY_VMM_OK) {
    code = postcopy_vmm_attach(handle_, &how, &callbacks);
  }
  if (code == POSTCOPY_VMM_OK && options_.source) {
    code = postcopy_vmm_marker_new(handle_, &marker_);
  }
  if (code == POSTCOPY_VMM_OK) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(code),
                      postcopy_vmm_message(handle_));
}

postcopy_vmm_callbacks ReplayVmm::Callbacks() {
  return {.size = sizeof(postcopy_vmm_callbacks),
          .context = this,
          .pause_guest = &Pause,
          .save_device_state =
              [](void*, postcopy_vmm* handle) {
                return postcopy_vmm_append_device_state(handle, "replay", 6);
              },
          .load_device_state = [](void*, postcopy_vmm*, const void*,
                                  size_t) -> int { return POSTCOPY_VMM_OK; },
          .resume_guest = &Resume};
}

int ReplayVmm::Pause(void* context, postcopy_vmm*) {
  auto* const self = static_cast<ReplayVmm*>(context);
  if (self->options_.on_pause == nullptr) return POSTCOPY_VMM_OK;
  self->options_.on_pause([self](PageIndex page) {
    const int code = postcopy_vmm_mark(self->marker_, kSlot, page.value());
    POSTCOPY_CHECK(code == POSTCOPY_VMM_OK);
  });
  return POSTCOPY_VMM_OK;
}

int ReplayVmm::Resume(void* context, postcopy_vmm*) {
  auto* const self = static_cast<ReplayVmm*>(context);
  if (self->options_.on_resume != nullptr) self->options_.on_resume();
  return POSTCOPY_VMM_OK;
}

void ReplayVmm::Detach() {
  if (handle_ == nullptr) return;
  if (serving_.joinable()) {
    postcopy_vmm_stop(handle_);
    serving_.join();
  }
  postcopy_vmm_marker_free(marker_);
  if (!options_.source) postcopy_vmm_discard_guest(handle_);
  postcopy_vmm_free(handle_);
  handle_ = nullptr;
}

}  // namespace postcopy
