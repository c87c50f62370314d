#include "uffd/snapshot_pages.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

absl::Status BadExtent(size_t index, absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("extent ", index, " of the snapshot ", problem));
}

absl::Status CheckExtent(const SnapshotExtent& extent, size_t index,
                         PageIndex begin, absl::string_view file,
                         ByteCount size) {
  if (extent.page_size != kSmallPageBytes && !extent.large()) {
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
  if (length > size || extent.file_offset > size.value() - length.value()) {
    return BadExtent(
        index, absl::StrCat("ends after ", file, ", which has ", size.value(),
                            " bytes; is it complete?"));
  }
  return absl::OkStatus();
}

bool BeginsPage(const SnapshotExtent& extent, PageIndex page) {
  const ByteCount before = BytesIn(page - extent.pages.first);
  return before.value() % extent.page_size.value() == 0;
}

}  // namespace

absl::StatusOr<SnapshotExtents> SnapshotExtents::Create(
    std::vector<SnapshotExtent> extents, absl::string_view file,
    ByteCount size) {
  if (extents.empty() || extents.size() > kMaxSnapshotExtents) {
    return absl::InvalidArgumentError(
        absl::StrCat("a snapshot has 1 to ", kMaxSnapshotExtents,
                     " extents, not ", extents.size()));
  }
  PageIndex begin;
  for (size_t i = 0; i < extents.size(); ++i) {
    const absl::Status status = CheckExtent(extents[i], i, begin, file, size);
    if (!status.ok()) return status;
    begin = extents[i].pages.end();
  }
  return SnapshotExtents(std::move(extents));
}

bool SnapshotExtents::any_large() const {
  return std::any_of(extents_.begin(), extents_.end(),
                     [](const SnapshotExtent& e) { return e.large(); });
}

const SnapshotExtent* SnapshotExtents::ExtentOf(PageIndex page) const {
  const auto after = std::upper_bound(
      extents_.begin(), extents_.end(), page,
      [](PageIndex p, const SnapshotExtent& e) { return p < e.pages.first; });
  // The first begins at page 0, so `after` is not it.
  const SnapshotExtent& extent = *(after - 1);
  return extent.pages.Contains(page) ? &extent : nullptr;
}

absl::StatusOr<SnapshotExtents::Place> SnapshotExtents::FindPage(
    PageIndex page) const {
  const SnapshotExtent* const extent = ExtentOf(page);
  if (extent == nullptr) {
    return absl::OutOfRangeError(
        absl::StrCat(ToString(page), " is in no extent of the snapshot"));
  }
  if (!BeginsPage(*extent, page)) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToString(page), " is not the first of a page of ",
                     ToString(kLargePageBytes)));
  }
  return Place{extent, {page, PagesIn(extent->page_size)}};
}

absl::StatusOr<SnapshotExtents::Place> SnapshotExtents::FindRun(
    PageRun run) const {
  absl::StatusOr<Place> first = FindPage(run.first);
  if (!first.ok()) return first.status();
  const SnapshotExtent& extent = *first->extent;
  const PageCount most =
      extent.large() ? PagesIn(kLargePageBytes) : kMaxBulkPages;
  const PageCount least = extent.large() ? most : PageCount(1);
  if (run.count < least || run.count > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("a bulk request has ", least.value(), " to ", most.value(),
                     " pages there, not ", run.count.value()));
  }
  if (run.end() > extent.pages.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToString(run), " are not in one extent"));
  }
  return Place{&extent, run};
}

}  // namespace postcopy
