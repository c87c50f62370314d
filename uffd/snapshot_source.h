// The missing pages of a VM that is resumed from a snapshot on this host.
#ifndef UFFD_SNAPSHOT_SOURCE_H_
#define UFFD_SNAPSHOT_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/page_source.h"
#include "uffd/read_ring.h"
#include "uffd/snapshot_file.h"
#include "uffd/snapshot_lane.h"
#include "uffd/snapshot_pages.h"

namespace postcopy {

// Reads under way at once; beyond it requests wait. For the faults of 4 KiB and
// of 2 MiB pages: 512 KiB and 8 MiB of buffers. Bulk has kMaxBulkOutstanding.
inline constexpr uint32_t kUrgentSmallReads = 128;
inline constexpr uint32_t kUrgentLargeReads = 4;

// Reads pages from a file that nobody changes, with an io_uring and a thread
// for each lane, so that a fault never waits behind a bulk read. Thread-safe,
// within the contract of PageSource.
//
// Nothing is answered that was not read, or was found to be a hole: when
// reading fails, or the file has become shorter, the source stops answering.
class SnapshotSource final : public SnapshotPages {
 public:
  // on_lost, on_back and on_trouble are not called.
  using Sink = SnapshotSink;

  struct Options {
    // By snapshot_source_benchmark: from a cold disk the two are within a third
    // of each other, now one ahead and now the other. What the page cache has
    // comes several times faster, and the VMs of one snapshot share it.
    SnapshotAccess access = SnapshotAccess::kBuffered;
    // Tests put others in its place.
    std::function<absl::StatusOr<std::unique_ptr<ReadRing>>(uint32_t depth)>
        make_ring = CreateIoUring;
  };

  // Errors: those of SnapshotFile::Open, of SnapshotExtents::Create and of
  // CreateIoUring.
  static absl::StatusOr<std::unique_ptr<SnapshotSource>> Create(
      const std::string& path, std::vector<SnapshotExtent> extents, Sink sink,
      const Options& options);

  SnapshotSource(const SnapshotSource&) = delete;
  SnapshotSource& operator=(const SnapshotSource&) = delete;
  // Stop().
  ~SnapshotSource() override;

  // 1 to kMaxUrgentPages distinct pages; of large ones the first PageIndex.
  // Neither waits for the disk nor allocates. OUT_OF_RANGE for a page beyond
  // the last extent, INVALID_ARGUMENT for one inside a large page or for too
  // many or no pages, RESOURCE_EXHAUSTED beyond kMaxOutstandingFaults pages
  // that were asked for and are not delivered; then none is taken.
  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override;

  // A run in one extent: 1 to kMaxBulkPages pages, or exactly one large page.
  // Errors as of RequestUrgent; RESOURCE_EXHAUSTED beyond kMaxBulkOutstanding
  // runs.
  absl::Status RequestBulk(PageRun run) override;

  // Waits for reads under way, and so for the disk. Requests are UNAVAILABLE
  // from then on, or what on_failure was told.
  void Stop() override;

 private:
  using Lane = std::unique_ptr<SnapshotLane>;

  SnapshotSource(SnapshotExtents extents, Sink sink);

  absl::Status MakeLanes(const SnapshotFile& file, const Options& options);
  absl::StatusOr<Lane> MakeLane(const SnapshotFile& file,
                                const Options& options,
                                const SnapshotLane::Limits& limits,
                                SnapshotLane::Deliver deliver);
  void Fail(absl::Status status);

  // Constant after construction.
  const SnapshotExtents extents_;
  const Sink sink_;
  Lane urgent_;
  Lane bulk_;

  std::mutex mutex_;
  bool ended_ = false;

  // Held while the threads are joined.
  std::mutex join_mutex_;
};

// Opens the file at `path` for each VM. Thread-safe.
OpenSnapshotPages OpenSnapshotAt(std::string path, SnapshotAccess access);

}  // namespace postcopy

#endif  // UFFD_SNAPSHOT_SOURCE_H_
