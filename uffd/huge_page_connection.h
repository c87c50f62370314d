// Sessions for a VM that has memory of huge pages: these travel as small ones.
#ifndef UFFD_HUGE_PAGE_CONNECTION_H_
#define UFFD_HUGE_PAGE_CONNECTION_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/destination_ram.h"
#include "uffd/large_page.h"
#include "uffd/source_connection.h"

namespace postcopy {

// Faulted huge pages that are coming in at a time; what is beyond waits its
// turn, and costs no memory yet. Two, so that the source always has one to
// read.
inline constexpr size_t kUrgentHugePages = 2;

// A SourceConnection for a DestinationVm with huge pages, over one for small
// ones: asks for the kLargePages of a huge page in several requests, and hands
// them on when all are here. Until the commit, pages pass as they come; so does
// what is not asked for as a huge page. A peer that answers with other pages
// than it was asked for is INVALID_ARGUMENT; RESOURCE_EXHAUSTED from
// RequestUrgent if more than kMaxOutstandingFaults huge pages wait.
//
// Threads: as SourceConnection. Memory: three huge pages, where needed.
class HugePageConnection final : public SourceConnection {
 public:
  // `ram` outlives the object, and may be changed by whoever serves it.
  HugePageConnection(std::unique_ptr<SourceConnection> connection,
                     const DestinationRam* ram);

  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override;
  absl::Status RequestBulk(PageRun run) override;
  absl::StatusOr<BulkEvent> ReceiveBulk() override;
  absl::StatusOr<absl::Span<const ReceivedRun>> ReceiveUrgent() override;

  uint64_t session_id() const override { return connection_->session_id(); }
  bool committed() const override { return connection_->committed(); }
  absl::Status SendRoundAck(uint32_t round, uint64_t damaged_runs) override {
    return connection_->SendRoundAck(round, damaged_runs);
  }
  absl::Status SendReady(PageCount discarded) override {
    return connection_->SendReady(discarded);
  }
  absl::Status SendResumed(int64_t vmm_nanos) override {
    return connection_->SendResumed(vmm_nanos);
  }
  void EndRequests() override { connection_->EndRequests(); }
  void Abort() override { connection_->Abort(); }
  absl::Status Complete() override { return connection_->Complete(); }

 private:
  // A faulted huge page that is coming in.
  struct Fetch {
    bool busy = false;  // guarded by mutex_
    LargePage page;     // of the urgent receiver while busy
  };
  // A RequestBulk whose answer is due, behind those before it.
  struct BulkRequest {
    PageRun pages;
    PageCount received;
  };

  bool IsHuge(PageRun run) const;

  // Asks for huge pages that wait, as many as may come in at a time.
  // REQUIRES: send_mutex_.
  absl::Status BeginWaiting();
  absl::Status AskHuge(PageRun unit);
  absl::Status AskSmall();

  // Of the urgent receiver. Frees what the last call handed out.
  absl::Status GoOn();
  absl::Status TakeUrgent(const ReceivedRun& run);
  absl::Status TakePart(PageRun unit, const ReceivedRun& part);

  // Of the bulk receiver: takes a part of the huge page that is due, and
  // `event` becomes the whole if it was the last.
  absl::Status TakeBulk(const BulkRequest& due, PagesArrived* event,
                        bool* whole);

  const std::unique_ptr<SourceConnection> connection_;
  const DestinationRam& ram_;

  // Held while urgent pages are asked for.
  std::mutex send_mutex_;
  std::vector<PageIndex> asked_;  // guarded by send_mutex_

  std::mutex mutex_;
  std::deque<PageRun> waiting_;   // guarded by mutex_
  std::deque<BulkRequest> bulk_;  // guarded by mutex_
  std::array<Fetch, kUrgentHugePages> fetches_;

  // Of the urgent receiver.
  std::vector<ReceivedRun> urgent_runs_;
  std::vector<Fetch*> handed_out_;
  // Of the bulk receiver.
  LargePage bulk_page_;
  std::vector<ReceivedRun> bulk_runs_;
};

}  // namespace postcopy

#endif  // UFFD_HUGE_PAGE_CONNECTION_H_
