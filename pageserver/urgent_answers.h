// The answers of one urgent stream, whose pages need not come in order.
#ifndef PAGESERVER_URGENT_ANSWERS_H_
#define PAGESERVER_URGENT_ANSWERS_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "pageserver/page_batch.h"
#include "pageserver/slow_readers.h"

namespace postcopy {

// Pages of one stream that the slow readers have been given and that have not
// been sent: 1 MiB. What is beyond is read by the stream's own thread, which
// meanwhile takes no requests.
inline constexpr PageCount kSlowPagesPerStream{256};

// Reads that they have of one stream at a time, so that others of the same disk
// have a turn.
inline constexpr size_t kSlowReadsPerStream = 12;
static_assert(kSlowReadsPerStream < kSlowReadsPerDisk);

// Reads the pages of urgent requests and sends them. What can be read at once
// is sent at once, by the thread that calls Answer; what may have to wait for a
// disk is read by others, and sent when it is there, so that the pages behind
// it need not wait. A thread of its own sends these, started for the first: a
// peer that takes nothing must not hold up the readers, which are everybody's.
// Thread-safe; Answer and Close are called by one thread.
class UrgentAnswers : public std::enable_shared_from_this<UrgentAnswers> {
 public:
  struct Stream {
    // Whether reading `run` may wait for a disk. Empty: everything is answered
    // in the order in which it was asked for, one answer to a request.
    std::function<bool(PageRun run)> may_wait;
    // Fills `batch`. By several threads at a time, also behind Close: it owns
    // what it needs.
    std::function<absl::Status(absl::Span<const PageIndex> pages,
                               PageBatch& batch)>
        read;
    // Takes the runs of `batch`; false: the stream has ended. Not by two at a
    // time, and neither of these two behind Close.
    std::function<bool(PageBatch& batch)> send;
    // Ends the stream soon.
    std::function<void()> abort;
    // For SlowReaders.
    uint64_t disk = 0;
  };

  // `readers` outlives the object.
  static std::shared_ptr<UrgentAnswers> Create(Stream stream,
                                               SlowReaders* readers);

  // Answers one request. UNAVAILABLE: the stream has ended; else the errors of
  // `read`, also of one that was begun by a call before.
  absl::Status Answer(absl::Span<const PageIndex> pages);

  // Nothing is sent any more when it returns. Reads that run are not waited
  // for. The last call, and needed before destruction. Why a late read has
  // failed and ended the stream; else OK.
  absl::Status Close();

 private:
  UrgentAnswers(Stream stream, SlowReaders* readers)
      : stream_(std::move(stream)), readers_(*readers) {}

  // Hands over what may wait; the rest is then in ready_.
  void HandOver(absl::Span<const PageIndex> pages);
  bool Submit(PageRun run);
  // By a slow reader: `run`, and then the one that waits longest.
  void ReadLate(PageRun run);
  // What came of reading `run`.
  void EndLate(absl::Status status, PageBatch batch);
  // REQUIRES: mutex_.
  bool SubmitLocked(PageRun run);
  // Has `batch` sent. REQUIRES: mutex_.
  absl::Status PassOn(PageBatch batch);
  void SendLate();
  bool Send(PageBatch& batch);

  const Stream stream_;
  SlowReaders& readers_;
  // Of the thread that calls Answer.
  std::vector<PageIndex> ready_;
  PageBatch batch_;

  std::thread sender_;  // started with mutex_, joined by Close

  std::mutex send_mutex_;  // held while something is sent; before mutex_
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool closed_ = false;
  bool sending_late_ = false;
  PageCount late_;
  size_t reads_ = 0;             // that the readers have
  std::deque<PageRun> to_read_;  // until they have fewer
  std::deque<PageBatch> to_send_;
  absl::Status failure_;
};

}  // namespace postcopy

#endif  // PAGESERVER_URGENT_ANSWERS_H_
