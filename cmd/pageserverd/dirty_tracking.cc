#include "cmd/pageserverd/dirty_tracking.h"

#include <fcntl.h>

#include <utility>
#include <vector>

#include "cmd/pageserverd/vmm_dirty_source.h"
#include "dirtytrack/pagemap_scan_source.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

v1::DirtyTracking Tell(v1::DirtyTrackingKind kind, const char* reason) {
  v1::DirtyTracking told;
  told.set_kind(kind);
  told.set_reason(reason);
  return told;
}

absl::StatusOr<ChosenDirtySource> ScanPagemap(const Attachment& attachment) {
  std::vector<PagemapScanSource::HostRegion> regions;
  for (size_t i = 0; i < attachment.memory.size(); ++i) {
    regions.push_back(
        {.address = attachment.memory[i].host_address,
         .kernel_page_size = attachment.layout.regions()[i].page_size});
  }
  absl::StatusOr<UniqueFd> pagemap = Duplicate(attachment.pagemap.get());
  if (!pagemap.ok()) return pagemap.status();
  // In two steps: a page that is written often is sent once in a round, not
  // once more for the writes between the scan and its turn.
  absl::StatusOr<std::unique_ptr<PagemapScanSource>> source =
      PagemapScanSource::Create(attachment.layout, std::move(regions),
                                *std::move(pagemap),
                                PagemapScanSource::Mode::kClearBeforeRead);
  if (!source.ok()) return source.status();
  return ChosenDirtySource{
      *std::move(source),
      Tell(v1::DIRTY_TRACKING_KIND_PAGEMAP_SCAN,
           "the VMM has attached its pagemap: the kernel tells what it wrote")};
}

}  // namespace

absl::StatusOr<ChosenDirtySource> ChooseDirtySource(
    const std::shared_ptr<VmmConnection>& vmm) {
  if (vmm->attachment().pagemap.valid()) return ScanPagemap(vmm->attachment());
  absl::StatusOr<std::unique_ptr<VmmDirtySource>> source =
      VmmDirtySource::Create(vmm);
  if (!source.ok()) return source.status();
  return ChosenDirtySource{
      *std::move(source),
      Tell(v1::DIRTY_TRACKING_KIND_DIRTY_LOG,
           "the VMM has attached a dirty log and marks what is written")};
}

}  // namespace postcopy
