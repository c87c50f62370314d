// Several dirty sources of one VM as one.
#ifndef DIRTYTRACK_MERGED_SOURCE_H_
#define DIRTYTRACK_MERGED_SOURCE_H_

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"

namespace postcopy {

// A page is dirty if any source says so, and clearing it clears it in all of
// them: so a page that vCPU and device have written is sent once.
class MergedSource final : public DirtySource {
 public:
  // The first is the one that takes restored pages. REQUIRES: one at least;
  // all are of the same VM, and none is started.
  explicit MergedSource(std::vector<std::unique_ptr<DirtySource>> sources);

  // Starts all, or none.
  absl::Status Start() override;
  // Asks all, also if one fails; returns the first error.
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;
  absl::Status Clear(PageBitmapView pages, PageRun run) override;
  absl::Status Restore(PageBitmapView unsent) override;
  // Stops all; returns the first error.
  absl::Status Stop() override;

 private:
  const std::vector<std::unique_ptr<DirtySource>> sources_;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_MERGED_SOURCE_H_
