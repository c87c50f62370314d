#include "uffd/snapshot_source.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "uffd/background_pull.h"
#include "uffd/pending_faults.h"

namespace postcopy {
namespace {

constexpr uint32_t kBulkReads{kFullBulkOutstanding};

absl::Status BadExtent(size_t index, absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("extent ", index, " of the snapshot ", problem));
}

bool IsLarge(const SnapshotExtent& extent) {
  return extent.page_size == kLargePageBytes;
}

absl::Status CheckExtent(const SnapshotExtent& extent, size_t index,
                         PageIndex begin, const SnapshotFile& file) {
  if (extent.page_size != kSmallPageBytes && !IsLarge(extent)) {
    return BadExtent(index, "has pages of neither 4KiB nor 2MiB");
  }
  if (extent.pages.first != begin) {
    return BadExtent(index, absl::StrCat("must begin with ", ToString(begin)));
  }
  if (extent.pages.count.value() > INT64_MAX / kPageSize ||
      extent.pages.first.value() > INT64_MAX / kPageSize) {
    return BadExtent(index, "is too long");
  }
  const ByteCount length = BytesIn(extent.pages.count);
  if (length.empty() || length.value() % extent.page_size.value() != 0) {
    return BadExtent(index, "must be one or more whole pages");
  }
  if (length > file.size() ||
      extent.file_offset > file.size().value() - length.value()) {
    return BadExtent(
        index, absl::StrCat("ends after ", file.path(), ", which has ",
                            file.size().value(), " bytes; is it complete?"));
  }
  return absl::OkStatus();
}

absl::Status CheckExtents(absl::Span<const SnapshotExtent> extents,
                          const SnapshotFile& file) {
  if (extents.empty() || extents.size() > kMaxSnapshotExtents) {
    return absl::InvalidArgumentError(
        absl::StrCat("a snapshot has 1 to ", kMaxSnapshotExtents,
                     " extents, not ", extents.size()));
  }
  PageIndex begin;
  for (size_t i = 0; i < extents.size(); ++i) {
    const absl::Status status = CheckExtent(extents[i], i, begin, file);
    if (!status.ok()) return status;
    begin = extents[i].pages.end();
  }
  return absl::OkStatus();
}

SnapshotRead ReadOf(const SnapshotExtent& extent, PageRun pages) {
  const ByteCount before = BytesIn(pages.first - extent.pages.first);
  return {.pages = pages,
          .file_offset = extent.file_offset + before.value(),
          .page_size = extent.page_size};
}

bool BeginsPage(const SnapshotExtent& extent, PageIndex page) {
  const ByteCount before = BytesIn(page - extent.pages.first);
  return before.value() % extent.page_size.value() == 0;
}

absl::Status OutsideError(PageIndex page) {
  return absl::OutOfRangeError(
      absl::StrCat(ToString(page), " is in no extent of the snapshot"));
}

absl::Status InsideLargeError(PageIndex page) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToString(page), " is not the first of a page of ",
                   ToString(kLargePageBytes)));
}

SnapshotLane::Limits UrgentLimits(bool large) {
  return {.max_outstanding = kMaxOutstandingFaults,
          .max_reads_per_answer = kMaxUrgentPages,
          .small = {kSmallPageBytes, kUrgentSmallReads},
          .large = {kLargePageBytes, large ? kUrgentLargeReads : 0}};
}

SnapshotLane::Limits BulkLimits(bool large) {
  return {.max_outstanding = kMaxBulkOutstanding,
          .max_reads_per_answer = 1,
          .small = {BytesIn(kMaxBulkPages), kBulkReads},
          .large = {kLargePageBytes, large ? kBulkReads : 0}};
}

}  // namespace

absl::StatusOr<std::unique_ptr<SnapshotSource>> SnapshotSource::Create(
    const std::string& path, std::vector<SnapshotExtent> extents, Sink sink,
    const Options& options) {
  const absl::StatusOr<SnapshotFile> file =
      SnapshotFile::Open(path, options.access);
  if (!file.ok()) return file.status();
  absl::Status status = CheckExtents(extents, *file);
  if (!status.ok()) return status;
  std::unique_ptr<SnapshotSource> source(
      new SnapshotSource(std::move(extents), std::move(sink)));
  status = source->MakeLanes(*file, options);
  if (!status.ok()) return status;
  status = source->urgent_->Start();
  if (status.ok()) status = source->bulk_->Start();
  if (!status.ok()) return status;
  return source;
}

SnapshotSource::SnapshotSource(std::vector<SnapshotExtent> extents, Sink sink)
    : extents_(std::move(extents)), sink_(std::move(sink)) {}

SnapshotSource::~SnapshotSource() { Stop(); }

absl::Status SnapshotSource::MakeLanes(const SnapshotFile& file,
                                       const Options& options) {
  const bool large = HasLargePages();
  absl::StatusOr<Lane> urgent =
      MakeLane(file, options, UrgentLimits(large), sink_.on_urgent);
  if (!urgent.ok()) return urgent.status();
  absl::StatusOr<Lane> bulk =
      MakeLane(file, options, BulkLimits(large), sink_.on_bulk);
  if (!bulk.ok()) return bulk.status();
  urgent_ = *std::move(urgent);
  bulk_ = *std::move(bulk);
  return absl::OkStatus();
}

absl::StatusOr<SnapshotSource::Lane> SnapshotSource::MakeLane(
    const SnapshotFile& file, const Options& options,
    const SnapshotLane::Limits& limits, SnapshotLane::Deliver deliver) {
  absl::StatusOr<SnapshotFile> own = file.Reopen();
  if (!own.ok()) return own.status();
  absl::StatusOr<std::unique_ptr<ReadRing>> ring =
      options.make_ring(SnapshotLane::RingDepth(limits));
  if (!ring.ok()) return ring.status();
  return std::make_unique<SnapshotLane>(
      limits, *std::move(own), *std::move(ring), std::move(deliver),
      [this](absl::Status status) { Fail(std::move(status)); });
}

bool SnapshotSource::HasLargePages() const {
  return std::any_of(extents_.begin(), extents_.end(), IsLarge);
}

const SnapshotExtent* SnapshotSource::ExtentOf(PageIndex page) const {
  const auto after = std::upper_bound(
      extents_.begin(), extents_.end(), page,
      [](PageIndex p, const SnapshotExtent& e) { return p < e.pages.first; });
  // The first begins at page 0, so `after` is not it.
  const SnapshotExtent& extent = *(after - 1);
  return extent.pages.Contains(page) ? &extent : nullptr;
}

absl::StatusOr<SnapshotRead> SnapshotSource::UrgentRead(PageIndex page) const {
  const SnapshotExtent* const extent = ExtentOf(page);
  if (extent == nullptr) return OutsideError(page);
  if (!BeginsPage(*extent, page)) return InsideLargeError(page);
  return ReadOf(*extent, {page, PagesIn(extent->page_size)});
}

absl::StatusOr<SnapshotRead> SnapshotSource::BulkRead(PageRun run) const {
  const SnapshotExtent* const extent = ExtentOf(run.first);
  if (extent == nullptr) return OutsideError(run.first);
  if (!BeginsPage(*extent, run.first)) return InsideLargeError(run.first);
  const PageCount most =
      IsLarge(*extent) ? PagesIn(kLargePageBytes) : kMaxBulkPages;
  const PageCount least = IsLarge(*extent) ? most : PageCount(1);
  if (run.count < least || run.count > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("a bulk request has ", least.value(), " to ", most.value(),
                     " pages there, not ", run.count.value()));
  }
  if (run.end() > extent->pages.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToString(run), " are not in one extent"));
  }
  return ReadOf(*extent, run);
}

absl::Status SnapshotSource::RequestUrgent(absl::Span<const PageIndex> pages) {
  if (pages.empty() || pages.size() > kMaxUrgentPages) {
    return absl::InvalidArgumentError(
        absl::StrCat("an urgent request has 1 to ", kMaxUrgentPages,
                     " pages, not ", pages.size()));
  }
  std::array<SnapshotRead, kMaxUrgentPages> reads;
  for (size_t i = 0; i < pages.size(); ++i) {
    const absl::StatusOr<SnapshotRead> read = UrgentRead(pages[i]);
    if (!read.ok()) return read.status();
    reads[i] = *read;
  }
  return urgent_->Request(absl::MakeConstSpan(reads.data(), pages.size()));
}

absl::Status SnapshotSource::RequestBulk(PageRun run) {
  const absl::StatusOr<SnapshotRead> read = BulkRead(run);
  if (!read.ok()) return read.status();
  return bulk_->Request({*read});
}

void SnapshotSource::Stop() {
  // Not made: Create failed.
  if (bulk_ == nullptr) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
  }
  const absl::Status stopped =
      absl::UnavailableError("the snapshot source was stopped");
  urgent_->Refuse(stopped);
  bulk_->Refuse(stopped);
  const std::lock_guard<std::mutex> lock(join_mutex_);
  urgent_->Join();
  bulk_->Join();
}

void SnapshotSource::Fail(absl::Status status) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(ended_, true)) return;
    // Within the lock: a lane that fails second ends when it is refused too.
    urgent_->Refuse(status);
    bulk_->Refuse(status);
  }
  sink_.on_failure(std::move(status));
}

}  // namespace postcopy
