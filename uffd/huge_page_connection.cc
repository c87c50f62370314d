#include "uffd/huge_page_connection.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "uffd/pending_faults.h"

namespace postcopy {
namespace {

absl::Status ProtocolError(absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("the source does not follow the protocol: ", problem));
}

}  // namespace

HugePageConnection::HugePageConnection(
    std::unique_ptr<SourceConnection> connection, const DestinationRam* ram)
    : connection_(std::move(connection)), ram_(*ram) {
  asked_.reserve(kMaxUrgentPages);
  urgent_runs_.reserve(kMaxUrgentPages);
}

bool HugePageConnection::IsHuge(PageRun run) const {
  return ram_.UnitOf(run.first).count > PageCount(1);
}

// --- Asking.

absl::Status HugePageConnection::RequestUrgent(
    absl::Span<const PageIndex> pages) {
  const std::lock_guard<std::mutex> lock(send_mutex_);
  asked_.clear();
  for (const PageIndex page : pages) {
    const PageRun unit = ram_.UnitOf(page);
    if (!IsHuge(unit)) {
      asked_.push_back(page);
      continue;
    }
    const std::lock_guard<std::mutex> waiting(mutex_);
    if (waiting_.size() >= kMaxOutstandingFaults) {
      return absl::ResourceExhaustedError("too many huge pages are asked for");
    }
    waiting_.push_back(unit);
  }
  absl::Status status = AskSmall();
  return status.ok() ? BeginWaiting() : status;
}

absl::Status HugePageConnection::AskSmall() {
  if (asked_.empty()) return absl::OkStatus();
  absl::Status status = connection_->RequestUrgent(asked_);
  asked_.clear();
  return status;
}

absl::Status HugePageConnection::AskHuge(PageRun unit) {
  for (PageIndex page = unit.first; page < unit.end(); page += PageCount(1)) {
    asked_.push_back(page);
    if (asked_.size() < kMaxUrgentPages) continue;
    if (absl::Status s = AskSmall(); !s.ok()) return s;
  }
  return AskSmall();
}

absl::Status HugePageConnection::BeginWaiting() {
  while (true) {
    PageRun unit;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto idle =
          std::find_if(fetches_.begin(), fetches_.end(),
                       [](const Fetch& fetch) { return !fetch.busy; });
      if (idle == fetches_.end() || waiting_.empty()) return absl::OkStatus();
      unit = waiting_.front();
      waiting_.pop_front();
      idle->busy = true;
      idle->page.Begin(unit);
    }
    if (absl::Status s = AskHuge(unit); !s.ok()) return s;
  }
}

absl::Status HugePageConnection::RequestBulk(PageRun run) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    bulk_.push_back({run, PageCount(0)});
  }
  while (!run.count.empty()) {
    const PageRun part{run.first, std::min(run.count, kMaxBulkPages)};
    if (absl::Status s = connection_->RequestBulk(part); !s.ok()) return s;
    run = {part.end(), run.count - part.count};
  }
  return absl::OkStatus();
}

// --- Receiving faulted pages.

absl::StatusOr<absl::Span<const ReceivedRun>>
HugePageConnection::ReceiveUrgent() {
  if (absl::Status s = GoOn(); !s.ok()) return s;
  while (urgent_runs_.empty()) {
    const absl::StatusOr<absl::Span<const ReceivedRun>> runs =
        connection_->ReceiveUrgent();
    if (!runs.ok()) return runs.status();
    // What an empty answer means is not for this to say.
    if (runs->empty()) return runs;
    for (const ReceivedRun& run : *runs) {
      if (absl::Status s = TakeUrgent(run); !s.ok()) return s;
    }
  }
  return absl::MakeConstSpan(urgent_runs_);
}

absl::Status HugePageConnection::GoOn() {
  urgent_runs_.clear();
  if (handed_out_.empty()) return absl::OkStatus();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Fetch* const fetch : handed_out_) fetch->busy = false;
  }
  handed_out_.clear();
  // Who holds it does not wait for what is received here: requests for all huge
  // pages that may come in fit the stream's window.
  const std::lock_guard<std::mutex> lock(send_mutex_);
  return BeginWaiting();
}

absl::Status HugePageConnection::TakeUrgent(const ReceivedRun& run) {
  if (run.pages.count.value() > kMaxUrgentPages || !HasItsData(run)) {
    return ProtocolError("an answer of a wrong size");
  }
  absl::Status inside = ram_.layout().Check(run.pages.first, run.pages.count);
  if (!inside.ok()) return inside;
  PageRun rest = run.pages;
  while (!rest.count.empty()) {
    const PageRun unit = ram_.UnitOf(rest.first);
    const PageRun part =
        IsHuge(unit) ? CommonPages(rest, unit) : ram_.RequestFor(rest);
    const ReceivedRun received{part, DataOf(part, run)};
    if (IsHuge(unit)) {
      if (absl::Status s = TakePart(unit, received); !s.ok()) return s;
    } else {
      urgent_runs_.push_back(received);
    }
    rest = {part.end(), rest.count - part.count};
  }
  return absl::OkStatus();
}

absl::Status HugePageConnection::TakePart(PageRun unit,
                                          const ReceivedRun& part) {
  for (Fetch& fetch : fetches_) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!fetch.busy || fetch.page.pages() != unit) continue;
    }
    // Nobody else changes it until it is not busy any more.
    if (fetch.page.complete()) continue;
    fetch.page.Add(part.pages, part.data);
    if (!fetch.page.complete()) return absl::OkStatus();
    urgent_runs_.push_back({unit, fetch.page.data()});
    handed_out_.push_back(&fetch);
    return absl::OkStatus();
  }
  return ProtocolError("pages that nobody has asked for");
}

// --- Receiving what nobody has touched.

absl::StatusOr<BulkEvent> HugePageConnection::ReceiveBulk() {
  bool decompressed = false;
  while (true) {
    absl::StatusOr<BulkEvent> event = connection_->ReceiveBulk();
    if (!event.ok()) return event;
    auto* const pages = std::get_if<PagesArrived>(&*event);
    if (pages == nullptr) return event;
    std::optional<BulkRequest> due;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!bulk_.empty()) due = bulk_.front();
    }
    // Of a round; or one of which not all is there, which ends the session.
    if (!due.has_value() || pages->damaged_runs > 0) return event;
    pages->decompressed = decompressed = decompressed || pages->decompressed;
    bool whole = false;
    if (absl::Status s = TakeBulk(*due, pages, &whole); !s.ok()) return s;
    if (whole) return event;
  }
}

absl::Status HugePageConnection::TakeBulk(const BulkRequest& due,
                                          PagesArrived* event, bool* whole) {
  *whole = !IsHuge(due.pages);
  PageCount received = due.pages.count;
  if (!*whole) {
    PageIndex next = due.pages.first + due.received;
    const PageIndex end =
        next + std::min(due.pages.end() - next, kMaxBulkPages);
    if (due.received.empty()) bulk_page_.Begin(due.pages);
    for (const ReceivedRun& run : event->runs) {
      if (run.pages.first != next || run.pages.count > end - next ||
          !HasItsData(run)) {
        return ProtocolError("an answer that was not due");
      }
      bulk_page_.Add(run.pages, run.data);
      next = run.pages.end();
    }
    if (next != end) return ProtocolError("half an answer");
    received = end - due.pages.first;
    *whole = received == due.pages.count;
    if (*whole) {
      bulk_runs_.assign({{due.pages, bulk_page_.data()}});
      event->runs = bulk_runs_;
    }
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (*whole) {
    bulk_.pop_front();
  } else {
    bulk_.front().received = received;
  }
  return absl::OkStatus();
}

}  // namespace postcopy
