// Dirty pages from a vhost or vhost-user back-end.
#ifndef DIRTYTRACK_VHOST_LOG_H_
#define DIRTYTRACK_VHOST_LOG_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Guest-physical memory above this has no vhost log: it takes a bit per page
// from address 0 on, 2 GiB here (sparse).
inline constexpr ByteCount kMaxVhostLoggedBytes{uint64_t{1} << 46};

// The bitmap of VHOST_SET_LOG_BASE and VHOST_USER_SET_LOG_BASE: one bit per 4
// KiB page of guest-physical memory, which the back-end sets by an atomic OR
// after it has written the page. It knows of no sections, so there is no second
// bitmap to switch to: each word is taken by an atomic exchange, which loses
// nothing, and costs a walk of the bitmap. To be merged with the source that
// sees the vCPUs' writes (merged_source.h).
//
// The VMM turns logging on in the back-end (VHOST_F_LOG_ALL) before Start.
class VhostLog final : public DirtySource {
 public:
  // For the slots of address space 0, which is what devices see.
  // INVALID_ARGUMENT, naming the slot, unless they fit `layout` (CheckSlots)
  // and end below kMaxVhostLoggedBytes, or if there is none in address space 0.
  // Other errors as CreateMemfd and SharedMapping::Map.
  static absl::StatusOr<std::unique_ptr<VhostLog>> Create(
      const RamLayout& layout, const std::vector<Slot>& slots);

  // What to pass to the back-end: the log begins at offset 0 of the memfd.
  int fd() const { return fd_.get(); }
  ByteCount bytes() const { return mapping_.size(); }

  absl::Status Start() override;
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;
  absl::Status Clear(PageBitmapView pages, PageRun run) override;
  absl::Status Restore(PageBitmapView unsent) override;
  absl::Status Stop() override;

 private:
  // Where the pages of one slot are, in the log and in RAM.
  struct Window {
    PageIndex in_log;
    PageRun ram;
  };

  VhostLog(UniqueFd fd, SharedMapping mapping, PageBitmapView log,
           std::vector<Window> windows, PageBitmap restored);
  absl::Status CheckUse(PageBitmapView bitmap) const;

  const UniqueFd fd_;
  const SharedMapping mapping_;
  const PageBitmapView log_;  // by guest-physical page
  const std::vector<Window> windows_;
  const PageBitmap restored_;
  bool started_ = false;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_VHOST_LOG_H_
