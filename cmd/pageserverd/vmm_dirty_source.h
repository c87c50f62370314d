// Dirty pages of a VM that is attached over the VMM channel.
#ifndef CMD_PAGESERVERD_VMM_DIRTY_SOURCE_H_
#define CMD_PAGESERVERD_VMM_DIRTY_SOURCE_H_

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/vmm_channel/vmm_connection.h"
#include "cmd/vmm_channel/weak_vmm.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/shared_log_source.h"

namespace postcopy {

// The shared log of the VM, which its VMM is told to keep: Start and Stop turn
// the VMM's tracking on and off, Collect has it bring the log up to date.
class VmmDirtySource final : public DirtySource {
 public:
  // Opens the log that the VMM attached. INVALID_ARGUMENT or
  // FAILED_PRECONDITION if it does not fit the VM's slots, RESOURCE_EXHAUSTED
  // for descriptors.
  static absl::StatusOr<std::unique_ptr<VmmDirtySource>> Create(
      const std::shared_ptr<VmmConnection>& vmm);

  absl::Status Start() override;
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;
  absl::Status Clear(PageBitmapView pages, PageRun run) override;
  absl::Status Restore(PageBitmapView unsent) override;
  absl::Status Stop() override;

 private:
  VmmDirtySource(WeakVmm vmm, std::unique_ptr<SharedLogSource> log)
      : vmm_(std::move(vmm)), log_(std::move(log)) {}

  const WeakVmm vmm_;
  const std::unique_ptr<SharedLogSource> log_;
  bool started_ = false;
};

}  // namespace postcopy

#endif  // CMD_PAGESERVERD_VMM_DIRTY_SOURCE_H_
