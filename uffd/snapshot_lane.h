// One thread that reads parts of a snapshot file and hands the pages on.
#ifndef UFFD_SNAPSHOT_LANE_H_
#define UFFD_SNAPSHOT_LANE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/page_source.h"
#include "uffd/read_ring.h"
#include "uffd/snapshot_file.h"

namespace postcopy {

// Times that one read is tried again after EAGAIN or EINTR.
inline constexpr int kMaxReadRetries = 1000;

// Runs in one answer: as many as pages in a request of 4 KiB pages.
inline constexpr size_t kMaxAnswerRuns = 64;
static_assert(kMaxAnswerRuns >= kMaxUrgentPages);
static_assert(kMaxAnswerRuns >= kMaxBulkPages.value());

// Pages that lie together in the file.
struct SnapshotRead {
  PageRun pages;
  uint64_t file_offset = 0;
  // What is all zeros or not, as a whole: the extent's page size. A divisor of
  // the pages' length, and at least a kMaxAnswerRuns-th of it.
  ByteCount page_size;
};

// Reads that use buffers of one size. They wait for one another, and never for
// those of another pool.
struct BufferPool {
  // A multiple of kPageSize; a read uses the smallest that holds it.
  ByteCount buffer_bytes;
  // How many reads may be under way. 0: there are no such reads.
  uint32_t buffers = 0;
};

// Reads in the order of the requests, several at a time, and delivers each when
// it is complete, whatever was asked before it. Thread-safe.
//
// When reading fails, the file turns out too short, or a delivery returns an
// error, nothing is delivered any more, and `fail` is told why; it must call
// Refuse, with whatever requests are to be told from then on.
class SnapshotLane {
 public:
  struct Limits {
    // Reads accepted and not about to be delivered.
    size_t max_outstanding = 0;
    // Reads that one delivery may have; each is 1 run at least.
    size_t max_reads_per_answer = 0;
    BufferPool small;
    BufferPool large;
  };
  using Deliver = std::function<absl::Status(absl::Span<const ReceivedRun>)>;
  using Fail = std::function<void(absl::Status)>;

  // How deep the ring must be.
  static uint32_t RingDepth(const Limits& limits) {
    return limits.small.buffers + limits.large.buffers;
  }

  // `deliver` and `fail` are called by the lane's thread, without a lock;
  // `fail` once at most. The file is the lane's own.
  SnapshotLane(const Limits& limits, SnapshotFile file,
               std::unique_ptr<ReadRing> ring, Deliver deliver, Fail fail);
  SnapshotLane(const SnapshotLane&) = delete;
  SnapshotLane& operator=(const SnapshotLane&) = delete;
  // REQUIRES: joined, if it was started.
  ~SnapshotLane();

  // Starts the thread. Call once. RESOURCE_EXHAUSTED if there is none.
  absl::Status Start();

  // Takes all of `reads` or none: RESOURCE_EXHAUSTED if they are too many, or
  // what Refuse was told. Does not touch the disk and allocates nothing.
  // REQUIRES: each fits a buffer and lies below file.size().
  absl::Status Request(absl::Span<const SnapshotRead> reads);

  // From now on requests are refused with `why`, which is not OK, and nothing
  // is delivered except what is being delivered now. The first call counts.
  void Refuse(absl::Status why);

  // Waits for the thread, and it for the reads that are under way. REQUIRES:
  // Refuse was called; not from `deliver` or `fail`.
  void Join();

 private:
  struct alignas(kPageSize) AlignedPage {
    uint8_t bytes[kPageSize];
  };

  // Reads that wait for a buffer; never more than the capacity.
  class WaitingReads {
   public:
    explicit WaitingReads(size_t capacity) : reads_(capacity) {}
    size_t size() const { return size_; }
    void Push(const SnapshotRead& read);  // REQUIRES: size() < capacity
    SnapshotRead Pop();                   // REQUIRES: size() > 0

   private:
    std::vector<SnapshotRead> reads_;
    size_t first_ = 0;
    size_t size_ = 0;
  };

  // One buffer and the read that uses it.
  struct Slot {
    absl::Span<uint8_t> buffer;
    SnapshotRead read;
    size_t bytes_read = 0;
    int retries = 0;
    bool direct = false;
  };

  struct Pool {
    Pool(const BufferPool& pool, size_t capacity);

    const ByteCount buffer_bytes;
    std::unique_ptr<AlignedPage[]> memory;
    // Guarded by mutex_.
    WaitingReads waiting;
    // Numbers of slots; the thread's.
    std::vector<uint32_t> free;
  };

  void AddSlots(Pool* pool, uint32_t count);
  Pool& PoolOf(const SnapshotRead& read);
  Pool& PoolOfSlot(uint32_t slot);

  void Run();
  bool Refused();
  // Begins what waits and has a buffer, delivers what is complete.
  absl::Status RunOnce();
  absl::Status StartReads(Pool* pool);
  std::optional<SnapshotRead> NextRead(Pool* pool);
  absl::Status StartRead(uint32_t slot, const SnapshotRead& read);
  // Hands the rest of a read to the ring.
  void Continue(uint32_t slot);
  absl::Status AwaitReads();
  absl::Status OnResult(const ReadRing::Result& result);
  absl::Status Retry(uint32_t slot, int error);
  // Adds what a slot has read to the answer.
  absl::Status AddContent(uint32_t slot);
  void AddRun(const ReceivedRun& run);
  // Counts a read whose runs are in the answer; delivers if it is full.
  absl::Status EndRead(uint32_t slot);
  absl::Status DeliverAnswer();
  // Makes room for `count` requests, before the delivery that will cause them.
  // False: refused, so nothing may be delivered.
  bool TakeOutstanding(size_t count);
  // Waits for the reads under way, which write to the buffers.
  void Drain();
  absl::Status Failure(const Slot& slot, absl::string_view problem) const;

  // Constant after construction.
  const Limits limits_;
  const std::unique_ptr<ReadRing> ring_;
  const Deliver deliver_;
  const Fail fail_;
  std::thread thread_;

  // The thread's.
  SnapshotFile file_;
  std::vector<Slot> slots_;
  size_t under_way_ = 0;
  std::vector<ReadRing::Result> results_;
  std::array<ReceivedRun, kMaxAnswerRuns> answer_;
  size_t answer_runs_ = 0;
  // Slots whose content the answer has.
  std::vector<uint32_t> answered_;

  std::mutex mutex_;
  absl::Status refusal_;
  size_t outstanding_ = 0;
  Pool small_;
  Pool large_;
};

}  // namespace postcopy

#endif  // UFFD_SNAPSHOT_LANE_H_
