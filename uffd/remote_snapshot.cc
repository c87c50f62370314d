#include "uffd/remote_snapshot.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {
namespace {

absl::Status Lost() {
  return absl::UnavailableError("the source of the snapshot is lost");
}

absl::Status ProtocolError(absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("the source does not follow the protocol: ", problem));
}

absl::Status CheckAligned(const SnapshotExtents& extents) {
  for (size_t i = 0; i < extents.all().size(); ++i) {
    if (extents.all()[i].file_offset % kPageSize == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "extent ", i, " of the snapshot begins at byte ",
        extents.all()[i].file_offset, " of the file, which is no multiple of ",
        kPageSize, ": such can only be served from a file of this host"));
  }
  return absl::OkStatus();
}

PageRun InFile(const SnapshotExtents::Place& place) {
  return {PageIndex(place.file_offset() / kPageSize), place.pages.count};
}

}  // namespace

void RemoteSnapshot::LargeFetch::Begin(const SnapshotExtents::Place& place) {
  place_ = place;
  page_.Begin(InFile(place));
}

// --- Beginning and end.

absl::StatusOr<std::unique_ptr<SnapshotPages>> RemoteSnapshot::Create(
    std::unique_ptr<SnapshotDialer> dialer, std::vector<SnapshotExtent> extents,
    SnapshotSink sink, Options options) {
  absl::StatusOr<OpenedSnapshot> first = dialer->Open();
  if (!first.ok()) return first.status();
  auto checked =
      SnapshotExtents::Create(std::move(extents), dialer->name(), first->size);
  if (!checked.ok()) return checked.status();
  if (absl::Status s = CheckAligned(*checked); !s.ok()) return s;
  std::unique_ptr<RemoteSnapshot> snapshot(
      new RemoteSnapshot(std::move(dialer), *std::move(checked),
                         std::move(sink), options, *std::move(first)));
  absl::StatusOr<std::thread> driver =
      StartThread([self = snapshot.get()] { self->Drive(); });
  if (!driver.ok()) return driver.status();
  snapshot->driver_ = *std::move(driver);
  return snapshot;
}

RemoteSnapshot::RemoteSnapshot(std::unique_ptr<SnapshotDialer> dialer,
                               SnapshotExtents extents, SnapshotSink sink,
                               Options options, OpenedSnapshot first)
    : dialer_(std::move(dialer)),
      extents_(std::move(extents)),
      sink_(std::move(sink)),
      options_(options),
      size_(first.size),
      content_id_(first.content_id),
      pause_nanos_(options.retry_nanos_first),
      connection_(std::move(first.connection)) {
  small_runs_.reserve(kMaxUrgentPages);
  asked_.reserve(kMaxUrgentPages);
}

void RemoteSnapshot::Stop() {
  std::shared_ptr<SourceConnection> current;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    current = connection_;
    changed_.notify_all();
  }
  dialer_->Cancel();
  if (current != nullptr) current->Abort();
  const std::lock_guard<std::mutex> lock(join_mutex_);
  if (driver_.joinable()) driver_.join();
}

// --- The driver.

void RemoteSnapshot::Drive() {
  while (true) {
    End end = ServeSession();
    if (end.by_sink) {
      sink_.on_failure(std::move(end.status));
      return;
    }
    if (!absl::IsUnavailable(end.status) && sink_.on_error) {
      sink_.on_error(end.status);
    }
    sink_.on_lost();
    Forget();
    auto next = Redial(end.status);
    if (!next.ok()) {
      sink_.on_failure(next.status());
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return;
      connection_ = *std::move(next);
    }
    sink_.on_back();
  }
}

RemoteSnapshot::End RemoteSnapshot::ServeSession() {
  const std::shared_ptr<SourceConnection> current = connection();
  brought_ = false;
  End urgent_end;
  absl::StatusOr<std::thread> urgent = StartThread([&] {
    urgent_end = ReceiveUrgent(*current);
    // Either lane alone is of no use.
    current->Abort();
  });
  End end = {.status = urgent.status()};
  if (urgent.ok()) end = ReceiveBulk(*current);
  current->Abort();
  if (urgent.ok()) urgent->join();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    connection_ = nullptr;
    if (stopping_) return {.status = Lost(), .by_sink = false};
  }
  // Whichever ended first has ended the other.
  const bool urgent_first = urgent_end.by_sink || absl::IsCancelled(end.status);
  return urgent_first ? urgent_end : end;
}

void RemoteSnapshot::Forget() {
  // Nobody receives or asks any more.
  const std::lock_guard<std::mutex> lock(mutex_);
  bulk_.clear();
  bulk_page_.End();
  large_waiting_.clear();
  for (LargeFetch& page : large_) page.End();
  small_runs_.clear();
  small_pages_ = PageCount(0);
}

absl::StatusOr<std::shared_ptr<SourceConnection>> RemoteSnapshot::Redial(
    const absl::Status& end) {
  // A source that ends every session is not to be asked in a loop, be it at
  // once or for a page among others.
  if (brought_) pause_nanos_ = options_.retry_nanos_first;
  if (!brought_ || !absl::IsUnavailable(end)) Pause();
  absl::StatusCode told = absl::StatusCode::kOk;
  while (true) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return nullptr;
    }
    auto next = TryDial();
    if (next.ok() || absl::IsDataLoss(next.status())) return next;
    if (next.status().code() != told && sink_.on_trouble) {
      told = next.status().code();
      sink_.on_trouble(next.status());
    }
    Pause();
  }
}

absl::StatusOr<std::shared_ptr<SourceConnection>> RemoteSnapshot::TryDial() {
  absl::StatusOr<OpenedSnapshot> opened = dialer_->Open();
  if (!opened.ok()) return opened.status();
  if (opened->size != size_ || opened->content_id != content_id_) {
    // The right one may yet come back.
    return absl::FailedPreconditionError(absl::StrCat(
        dialer_->name(), " is another file than before, or has been written ",
        "to: serve the one that this VM was restored from"));
  }
  return std::shared_ptr<SourceConnection>(std::move(opened->connection));
}

void RemoteSnapshot::Pause() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, std::chrono::nanoseconds(pause_nanos_),
                    [this] { return stopping_; });
  pause_nanos_ = std::min(pause_nanos_ * 2, options_.retry_nanos_last);
}

std::shared_ptr<SourceConnection> RemoteSnapshot::connection() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return connection_;
}

// --- Asking.

absl::Status RemoteSnapshot::RequestUrgent(absl::Span<const PageIndex> pages) {
  if (pages.empty() || pages.size() > kMaxUrgentPages) {
    return absl::InvalidArgumentError(
        absl::StrCat("an urgent request has 1 to ", kMaxUrgentPages,
                     " pages, not ", pages.size()));
  }
  std::array<SnapshotExtents::Place, kMaxUrgentPages> places;
  for (size_t i = 0; i < pages.size(); ++i) {
    const auto place = extents_.FindPage(pages[i]);
    if (!place.ok()) return place.status();
    places[i] = *place;
  }
  const std::shared_ptr<SourceConnection> current = connection();
  if (current == nullptr) return Lost();
  const std::lock_guard<std::mutex> lock(send_mutex_);
  asked_.clear();
  for (size_t i = 0; i < pages.size(); ++i) {
    if (!places[i].extent->large()) {
      asked_.push_back(InFile(places[i]).first);
      continue;
    }
    const std::lock_guard<std::mutex> waiting(mutex_);
    if (large_waiting_.size() >= kMaxOutstandingFaults) {
      return absl::ResourceExhaustedError("too many huge pages are asked for");
    }
    large_waiting_.push_back(places[i]);
  }
  absl::Status status = AskSmall(*current);
  return status.ok() ? BeginWaiting(*current) : status;
}

absl::Status RemoteSnapshot::AskSmall(SourceConnection& connection) {
  if (asked_.empty()) return absl::OkStatus();
  absl::Status status = connection.RequestUrgent(asked_);
  asked_.clear();
  return status;
}

absl::Status RemoteSnapshot::AskLarge(SourceConnection& connection,
                                      const SnapshotExtents::Place& place) {
  const PageRun run = InFile(place);
  for (PageIndex page = run.first; page < run.end(); page += PageCount(1)) {
    asked_.push_back(page);
    if (asked_.size() < kMaxUrgentPages) continue;
    if (absl::Status s = AskSmall(connection); !s.ok()) return s;
  }
  return AskSmall(connection);
}

absl::Status RemoteSnapshot::BeginWaiting(SourceConnection& connection) {
  while (true) {
    SnapshotExtents::Place place;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto idle =
          std::find_if(large_.begin(), large_.end(),
                       [](const LargeFetch& page) { return !page.busy(); });
      if (idle == large_.end() || large_waiting_.empty()) {
        return absl::OkStatus();
      }
      place = large_waiting_.front();
      large_waiting_.pop_front();
      idle->Begin(place);
    }
    if (absl::Status s = AskLarge(connection, place); !s.ok()) return s;
  }
}

absl::Status RemoteSnapshot::RequestBulk(PageRun run) {
  const auto place = extents_.FindRun(run);
  if (!place.ok()) return place.status();
  std::shared_ptr<SourceConnection> current;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (connection_ == nullptr) return Lost();
    current = connection_;
    bulk_.push_back({*place, PageCount(0)});
  }
  PageRun rest = InFile(*place);
  while (!rest.count.empty()) {
    const PageRun part{rest.first, std::min(rest.count, kMaxBulkPages)};
    if (absl::Status s = current->RequestBulk(part); !s.ok()) return s;
    rest = {part.end(), rest.count - part.count};
  }
  return absl::OkStatus();
}

// --- Receiving faulted pages.

RemoteSnapshot::End RemoteSnapshot::ReceiveUrgent(
    SourceConnection& connection) {
  End end;
  while (end.status.ok()) {
    const auto runs = connection.ReceiveUrgent();
    if (!runs.ok()) return {.status = runs.status()};
    brought_ = true;
    end = TakeUrgent(connection, *runs);
  }
  return end;
}

RemoteSnapshot::End RemoteSnapshot::TakeUrgent(
    SourceConnection& connection, absl::Span<const ReceivedRun> runs) {
  for (const ReceivedRun& run : runs) {
    End end = TakeUrgentRun(connection, run);
    if (!end.status.ok()) return end;
  }
  return DeliverSmall();
}

RemoteSnapshot::End RemoteSnapshot::TakeUrgentRun(SourceConnection& connection,
                                                  const ReceivedRun& run) {
  if (run.pages.count.value() > kMaxUrgentPages || !HasItsData(run)) {
    return {.status = ProtocolError("an answer of a wrong size")};
  }
  bool found = false;
  // Regions of a VM may share a part of the file: all of them get it.
  for (const SnapshotExtent& extent : extents_.all()) {
    const PageRun here = InFile({&extent, extent.pages});
    const PageRun part = CommonPages(run.pages, here);
    if (part.count.empty()) continue;
    found = true;
    const absl::Span<const uint8_t> data = DataOf(part, run);
    if (extent.large()) {
      End end = TakeLarge(connection, extent, part, data);
      if (!end.status.ok()) return end;
      continue;
    }
    if (small_pages_ + part.count > PageCount(kMaxUrgentPages)) {
      End end = DeliverSmall();
      if (!end.status.ok()) return end;
    }
    const PageIndex first = extent.pages.first + (part.first - here.first);
    small_runs_.push_back({{first, part.count}, data});
    small_pages_ += part.count;
  }
  if (!found) {
    return {.status = ProtocolError("pages that nobody has asked for")};
  }
  return {};
}

RemoteSnapshot::End RemoteSnapshot::DeliverSmall() {
  if (small_runs_.empty()) return {};
  absl::Status status = sink_.on_urgent(small_runs_);
  small_runs_.clear();
  small_pages_ = PageCount(0);
  const bool refused = !status.ok();
  return {.status = std::move(status), .by_sink = refused};
}

RemoteSnapshot::End RemoteSnapshot::TakeLarge(SourceConnection& connection,
                                              const SnapshotExtent& extent,
                                              PageRun pages,
                                              absl::Span<const uint8_t> data) {
  for (LargeFetch& large : large_) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!large.busy() || large.extent() != &extent) continue;
    }
    // Nobody else changes it until it is not busy any more.
    const PageRun part =
        CommonPages(pages, {large.first_in_file(), kLargePages});
    if (part.count.empty()) continue;
    large.Add(part, DataOf(part, {pages, data}));
    if (!large.complete()) continue;
    const ReceivedRun run = large.run();
    absl::Status status = sink_.on_urgent({run});
    if (!status.ok()) return {.status = std::move(status), .by_sink = true};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      large.End();
    }
    // Who holds it does not wait for what is received here: requests of all
    // kMaxOutstandingFaults pages fit the stream's window.
    const std::lock_guard<std::mutex> lock(send_mutex_);
    status = BeginWaiting(connection);
    if (!status.ok()) return {.status = std::move(status)};
  }
  return {};
}

// --- Receiving what nobody has touched.

RemoteSnapshot::End RemoteSnapshot::ReceiveBulk(SourceConnection& connection) {
  End end;
  while (end.status.ok()) {
    const auto event = connection.ReceiveBulk();
    if (!event.ok()) return {.status = event.status()};
    const auto* const pages = std::get_if<PagesArrived>(&*event);
    if (pages == nullptr) {
      return {.status = ProtocolError("of a snapshot there are only pages")};
    }
    end = TakeBulk(*pages);
  }
  return end;
}

RemoteSnapshot::End RemoteSnapshot::TakeBulk(const PagesArrived& pages) {
  if (pages.damaged_runs > 0) {
    return {.status =
                absl::DataLossError("the checksum of a page did not fit")};
  }
  std::optional<BulkRequest> due;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!bulk_.empty()) due = bulk_.front();
  }
  if (!due.has_value()) {
    return {.status = ProtocolError("pages that nobody has asked for")};
  }
  const SnapshotExtents::Place& place = due->place;
  const bool large = place.extent->large();
  const PageRun all = InFile(place);
  PageIndex next = all.first + due->received;
  const PageIndex end = next + std::min(all.end() - next, kMaxBulkPages);
  if (large && due->received.empty()) bulk_page_.Begin(place);
  bulk_runs_.clear();
  for (const ReceivedRun& run : pages.runs) {
    if (run.pages.first != next || run.pages.count > end - next ||
        !HasItsData(run)) {
      return {.status = ProtocolError("an answer that was not due")};
    }
    next = run.pages.end();
    if (large) bulk_page_.Add(run.pages, run.data);
    bulk_runs_.push_back(
        {{place.pages.first + (run.pages.first - all.first), run.pages.count},
         run.data});
  }
  if (next != end) return {.status = ProtocolError("half an answer")};
  brought_ = true;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (end == all.end()) {
      bulk_.pop_front();
    } else {
      bulk_.front().received = end - all.first;
    }
  }
  if (end != all.end()) return {};
  if (large) bulk_runs_.assign({bulk_page_.run()});
  absl::Status status = sink_.on_bulk(bulk_runs_);
  const bool refused = !status.ok();
  return {.status = std::move(status), .by_sink = refused};
}

}  // namespace postcopy
