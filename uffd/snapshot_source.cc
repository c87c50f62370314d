#include "uffd/snapshot_source.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "uffd/background_pull.h"
#include "uffd/pending_faults.h"

namespace postcopy {
namespace {

constexpr uint32_t kBulkReads{kFullBulkOutstanding};
constexpr uint32_t kLargeReads{kLargeBulkOutstanding};

SnapshotRead ReadOf(const SnapshotExtents::Place& place) {
  return {.pages = place.pages,
          .file_offset = place.file_offset(),
          .page_size = place.extent->page_size};
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
          .large = {kLargePageBytes, large ? kLargeReads : 0}};
}

}  // namespace

absl::StatusOr<std::unique_ptr<SnapshotSource>> SnapshotSource::Create(
    const std::string& path, std::vector<SnapshotExtent> extents, Sink sink,
    const Options& options) {
  const absl::StatusOr<SnapshotFile> file =
      SnapshotFile::Open(path, options.access);
  if (!file.ok()) return file.status();
  auto checked =
      SnapshotExtents::Create(std::move(extents), file->path(), file->size());
  if (!checked.ok()) return checked.status();
  std::unique_ptr<SnapshotSource> source(
      new SnapshotSource(*std::move(checked), std::move(sink)));
  absl::Status status = source->MakeLanes(*file, options);
  if (!status.ok()) return status;
  status = source->urgent_->Start();
  if (status.ok()) status = source->bulk_->Start();
  if (!status.ok()) return status;
  return source;
}

SnapshotSource::SnapshotSource(SnapshotExtents extents, Sink sink)
    : extents_(std::move(extents)), sink_(std::move(sink)) {}

SnapshotSource::~SnapshotSource() { Stop(); }

absl::Status SnapshotSource::MakeLanes(const SnapshotFile& file,
                                       const Options& options) {
  const bool large = extents_.any_large();
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

absl::Status SnapshotSource::RequestUrgent(absl::Span<const PageIndex> pages) {
  if (pages.empty() || pages.size() > kMaxUrgentPages) {
    return absl::InvalidArgumentError(
        absl::StrCat("an urgent request has 1 to ", kMaxUrgentPages,
                     " pages, not ", pages.size()));
  }
  std::array<SnapshotRead, kMaxUrgentPages> reads;
  for (size_t i = 0; i < pages.size(); ++i) {
    const auto place = extents_.FindPage(pages[i]);
    if (!place.ok()) return place.status();
    reads[i] = ReadOf(*place);
  }
  return urgent_->Request(absl::MakeConstSpan(reads.data(), pages.size()));
}

absl::Status SnapshotSource::RequestBulk(PageRun run) {
  const auto place = extents_.FindRun(run);
  if (!place.ok()) return place.status();
  return bulk_->Request({ReadOf(*place)});
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

OpenSnapshotPages OpenSnapshotAt(std::string path, SnapshotAccess access) {
  return
      [path = std::move(path), access](
          std::vector<SnapshotExtent> extents,
          SnapshotSink sink) -> absl::StatusOr<std::unique_ptr<SnapshotPages>> {
        return SnapshotSource::Create(path, std::move(extents), std::move(sink),
                                      {.access = access});
      };
}

}  // namespace postcopy
