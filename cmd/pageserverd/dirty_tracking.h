// Which source of dirty pages a VM gets.
#ifndef CMD_PAGESERVERD_DIRTY_TRACKING_H_
#define CMD_PAGESERVERD_DIRTY_TRACKING_H_

#include <memory>

#include "absl/status/statusor.h"
#include "cmd/vmm_channel/vmm_connection.h"
#include "dirtytrack/dirty_source.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// A source and what the operator is told of it.
struct ChosenDirtySource {
  std::unique_ptr<DirtySource> source;
  v1::DirtyTracking told;
};

// The VMM's choice: the kernel's page tables if it attached a pagemap, else the
// dirty log that it attached. Errors as of the source's Create.
absl::StatusOr<ChosenDirtySource> ChooseDirtySource(
    const std::shared_ptr<VmmConnection>& vmm);

}  // namespace postcopy

#endif  // CMD_PAGESERVERD_DIRTY_TRACKING_H_
