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

namespace postcopy {

inline constexpr ByteCount kSmallPageBytes{kPageSize};
inline constexpr ByteCount kLargePageBytes{uint64_t{2} << 20};

// Extents of one snapshot. A VM has one per region of its RAM.
inline constexpr size_t kMaxSnapshotExtents = 512;

// Reads under way at once; beyond it requests wait. For the faults of 4 KiB and
// of 2 MiB pages: 512 KiB and 8 MiB of buffers. Bulk has kMaxBulkOutstanding.
inline constexpr uint32_t kUrgentSmallReads = 128;
inline constexpr uint32_t kUrgentLargeReads = 4;

// Pages of the VM's RAM that lie together in the snapshot file.
struct SnapshotExtent {
  // A multiple of page_size long, and not empty.
  PageRun pages;
  // Of the first page; at any alignment, though O_DIRECT takes only multiples
  // of kPageSize (the others are read through the page cache).
  uint64_t file_offset = 0;
  // What the guest's memory is made of there, and so what is asked for and
  // answered as a whole: kSmallPageBytes or kLargePageBytes.
  ByteCount page_size = kSmallPageBytes;
};

// Reads pages from a file that nobody changes, with an io_uring and a thread
// for each lane, so that a fault never waits behind a bulk read. Thread-safe,
// within the contract of PageSource.
//
// The guest's pages are counted in units of kPageSize also where they are
// large: a large page is named by its first PageIndex, and lies at a multiple
// of its size from the first page of its extent.
//
// Nothing is answered that was not read, or was found to be a hole: when
// reading fails, or the file has become shorter, the source stops answering.
class SnapshotSource final : public PageSource {
 public:
  // Who gets the answers. Each is called by a lane's thread, without a lock of
  // the source; none may call Stop() or destroy the source.
  struct Sink {
    // Part of the answer to one RequestUrgent, or to several: at most
    // kMaxUrgentPages pages of their extents, as they have been read. A large
    // page is always whole, and all zeros or all data.
    std::function<absl::Status(absl::Span<const ReceivedRun>)> on_urgent;
    // The whole answer to one RequestBulk. At most kMaxBulkOutstanding are
    // asked for, so one may be delivered while another is being read.
    std::function<absl::Status(absl::Span<const ReceivedRun>)> on_bulk;
    // The source has ended. At most once: DATA_LOSS, naming the file and the
    // place, if it could not be read; INTERNAL, of io_uring; else what
    // on_urgent or on_bulk returned. An answer that the other lane had begun
    // to deliver may still be under way.
    std::function<void(absl::Status)> on_failure;
  };

  struct Options {
    // By snapshot_source_benchmark: from a cold disk the two are within a third
    // of each other, now one ahead and now the other. What the page cache has
    // comes several times faster, and the VMs of one snapshot share it.
    SnapshotAccess access = SnapshotAccess::kBuffered;
    // Tests put others in its place.
    std::function<absl::StatusOr<std::unique_ptr<ReadRing>>(uint32_t depth)>
        make_ring = CreateIoUring;
  };

  // `extents` ascend, the first begins at page 0, each other where the one
  // before it ends. Errors: SnapshotFile::Open's and CreateIoUring's;
  // INVALID_ARGUMENT names the extent that is not as above or that the file is
  // too short for.
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

  // Ends both threads, dropping what was not answered; waits for reads under
  // way, and so for the disk. No call to the sink runs when it returns, or is
  // made later. Requests are UNAVAILABLE from then on, or what on_failure was
  // told. Idempotent. Any thread but the source's.
  void Stop();

 private:
  using Lane = std::unique_ptr<SnapshotLane>;

  SnapshotSource(std::vector<SnapshotExtent> extents, Sink sink);

  absl::Status MakeLanes(const SnapshotFile& file, const Options& options);
  absl::StatusOr<Lane> MakeLane(const SnapshotFile& file,
                                const Options& options,
                                const SnapshotLane::Limits& limits,
                                SnapshotLane::Deliver deliver);
  bool HasLargePages() const;
  // The extent that holds `page`; null: there is none.
  const SnapshotExtent* ExtentOf(PageIndex page) const;
  absl::StatusOr<SnapshotRead> UrgentRead(PageIndex page) const;
  absl::StatusOr<SnapshotRead> BulkRead(PageRun run) const;
  void Fail(absl::Status status);

  // Constant after construction.
  const std::vector<SnapshotExtent> extents_;
  const Sink sink_;
  Lane urgent_;
  Lane bulk_;

  std::mutex mutex_;
  bool ended_ = false;

  // Held while the threads are joined.
  std::mutex join_mutex_;
};

}  // namespace postcopy

#endif  // UFFD_SNAPSHOT_SOURCE_H_
