// Where a VM's snapshot lies in a file, and who brings its pages.
#ifndef UFFD_SNAPSHOT_PAGES_H_
#define UFFD_SNAPSHOT_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/page_source.h"

namespace postcopy {

inline constexpr ByteCount kSmallPageBytes{kPageSize};
inline constexpr ByteCount kLargePageBytes{uint64_t{2} << 20};

// Extents of one snapshot. A VM has one per region of its RAM.
inline constexpr size_t kMaxSnapshotExtents = 512;

// Pages of the VM's RAM that lie together in the snapshot file.
struct SnapshotExtent {
  // A multiple of page_size long, and not empty.
  PageRun pages;
  // Of the first page; at any alignment, though O_DIRECT takes only multiples
  // of kPageSize (the others are read through the page cache), and a source on
  // another host only these.
  uint64_t file_offset = 0;
  // What the guest's memory is made of there, and so what is asked for and
  // answered as a whole: kSmallPageBytes or kLargePageBytes.
  ByteCount page_size = kSmallPageBytes;

  bool large() const { return page_size == kLargePageBytes; }
};

// The extents of one VM. Constant, hence thread-safe.
class SnapshotExtents {
 public:
  // `extents` ascend, the first begins at page 0, each other where the one
  // before it ends. INVALID_ARGUMENT names the extent that is not so, or that
  // the file, called `file` and `size` long, is too short for.
  static absl::StatusOr<SnapshotExtents> Create(
      std::vector<SnapshotExtent> extents, absl::string_view file,
      ByteCount size);

  absl::Span<const SnapshotExtent> all() const { return extents_; }
  bool any_large() const;

  // Pages to be read together, with the extent that has them.
  struct Place {
    const SnapshotExtent* extent = nullptr;
    PageRun pages;
    // Of the first, in the file.
    uint64_t file_offset() const {
      const ByteCount before = BytesIn(pages.first - extent->pages.first);
      return extent->file_offset + before.value();
    }
  };
  // The page of the guest, small or large, that begins with `page`.
  // OUT_OF_RANGE beyond the last extent, INVALID_ARGUMENT inside a large page.
  absl::StatusOr<Place> FindPage(PageIndex page) const;
  // A run in one extent: 1 to kMaxBulkPages pages, or exactly one large page.
  // Errors as of FindPage; INVALID_ARGUMENT if it is none.
  absl::StatusOr<Place> FindRun(PageRun run) const;

 private:
  explicit SnapshotExtents(std::vector<SnapshotExtent> extents)
      : extents_(std::move(extents)) {}

  // The extent that holds `page`; null: there is none.
  const SnapshotExtent* ExtentOf(PageIndex page) const;

  std::vector<SnapshotExtent> extents_;
};

// Who gets the answers of a SnapshotPages. Each is called by a thread of it,
// without a lock; none may call Stop() or destroy it.
struct SnapshotSink {
  // Part of the answer to one RequestUrgent, or to several: at most
  // kMaxUrgentPages pages of their extents, as they have been read. A large
  // page is always whole, and all zeros or all data.
  std::function<absl::Status(absl::Span<const ReceivedRun>)> on_urgent;
  // The whole answer to one RequestBulk. At most kMaxBulkOutstanding are
  // asked for, so one may be delivered while another is being read.
  std::function<absl::Status(absl::Span<const ReceivedRun>)> on_bulk;
  // It has ended. At most once: DATA_LOSS, naming what could not be read;
  // INTERNAL, of this host; else what on_urgent or on_bulk returned. An answer
  // that the other lane had begun to deliver may still be under way.
  std::function<void(absl::Status)> on_failure;
  // The two of a source that can be lost and come back: what has been asked for
  // and not been delivered will not be, and requests are UNAVAILABLE; what is
  // wanted may be asked for again, now. Perhaps on_lost is not followed by
  // on_back.
  std::function<void()> on_lost = nullptr;
  std::function<void()> on_back = nullptr;
  // Since on_lost it could not be reached, for this reason; once for each kind
  // of reason.
  std::function<void(const absl::Status&)> on_trouble = nullptr;
  // It was lost because of an error that was not the network's: what was asked
  // for cannot be had, or is not due. Before each such on_lost.
  std::function<void(const absl::Status&)> on_error = nullptr;
};

// Brings the pages of a snapshot that nobody changes.
//
// The guest's pages are counted in units of kPageSize also where they are
// large: a large page is named by its first PageIndex, and lies at a multiple
// of its size from the first page of its extent.
class SnapshotPages : public PageSource {
 public:
  // Ends all threads, dropping what was not answered. No call to the sink runs
  // when it returns, or is made later. Idempotent. Any thread but those that
  // call the sink.
  virtual void Stop() = 0;
};

// Makes them, for a VM that has such extents. The error is for the VMM.
using OpenSnapshotPages =
    std::function<absl::StatusOr<std::unique_ptr<SnapshotPages>>(
        std::vector<SnapshotExtent> extents, SnapshotSink sink)>;

}  // namespace postcopy

#endif  // UFFD_SNAPSHOT_PAGES_H_
