#include "uffd/destination_ram.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/check.h"
#include "dirtytrack/memfd.h"

namespace postcopy {
namespace {

absl::Status Bad(absl::string_view region, absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("region \"", region, "\": ", problem));
}

// True if [offset, offset + length) ends at or below 2^63 - 1, where neither
// off_t nor a user-space address overflows.
bool Fits(uint64_t offset, ByteCount length) {
  return length.value() <= INT64_MAX && offset <= INT64_MAX - length.value();
}

bool Overlap(uint64_t a, ByteCount a_length, uint64_t b, ByteCount b_length) {
  return a < b + b_length.value() && b < a + a_length.value();
}

absl::Status CheckNumbers(const Region& region,
                          const DestinationRegion& given) {
  if (!IsPageAligned(given.host_address) || given.fd_offset % kPageSize != 0) {
    return Bad(region.name,
               absl::StrCat("its host address and file offset must be "
                            "multiples of ",
                            kPageSize));
  }
  if (!Fits(given.host_address.value(), region.length) ||
      !Fits(given.fd_offset, region.length)) {
    return Bad(region.name, "its host address or file offset is too large");
  }
  return absl::OkStatus();
}

absl::Status CheckFile(const Region& region, const DestinationRegion& given) {
  const int flags = ::fcntl(given.memory_fd, F_GETFL);
  if (flags < 0) return Bad(region.name, "its memory descriptor is not open");
  // With O_APPEND pwrite() ignores its offset: BUGS in pwrite(2).
  if ((flags & O_ACCMODE) != O_RDWR || (flags & O_APPEND)) {
    return Bad(region.name,
               "its memory descriptor must be O_RDWR and not O_APPEND");
  }
  struct statfs file_system = {};
  if (::fstatfs(given.memory_fd, &file_system) != 0 ||
      file_system.f_type != TMPFS_MAGIC) {
    return Bad(region.name,
               "its memory must be a memfd or a file on tmpfs, without huge "
               "pages");
  }
  const absl::StatusOr<ByteCount> size = FileSize(given.memory_fd);
  if (!size.ok()) return size.status();
  if (size->value() < given.fd_offset + region.length.value()) {
    return Bad(region.name, "its memory file ends before the region does");
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> SameFile(int a, int b) {
  struct stat a_stat = {};
  struct stat b_stat = {};
  if (::fstat(a, &a_stat) != 0 || ::fstat(b, &b_stat) != 0) {
    return absl::InternalError("cannot fstat a region's memory");
  }
  return a_stat.st_dev == b_stat.st_dev && a_stat.st_ino == b_stat.st_ino;
}

absl::Status CheckPair(const Region& a, const DestinationRegion& a_given,
                       const Region& b, const DestinationRegion& b_given) {
  if (Overlap(a_given.host_address.value(), a.length,
              b_given.host_address.value(), b.length)) {
    return Bad(b.name, absl::StrCat("its host addresses overlap those of \"",
                                    a.name, "\""));
  }
  if (!Overlap(a_given.fd_offset, a.length, b_given.fd_offset, b.length)) {
    return absl::OkStatus();
  }
  const absl::StatusOr<bool> same =
      SameFile(a_given.memory_fd, b_given.memory_fd);
  if (!same.ok()) return same.status();
  if (*same) {
    return Bad(b.name,
               absl::StrCat("it shares pages of its memory file with \"",
                            a.name, "\""));
  }
  return absl::OkStatus();
}

absl::Status CheckRegion(const RamLayout& layout,
                         const std::vector<DestinationRegion>& regions,
                         size_t index) {
  const Region& region = layout.regions()[index];
  absl::Status status = CheckNumbers(region, regions[index]);
  if (status.ok()) status = CheckFile(region, regions[index]);
  for (size_t other = 0; other < index && status.ok(); ++other) {
    status = CheckPair(layout.regions()[other], regions[other], region,
                       regions[index]);
  }
  return status;
}

}  // namespace

absl::StatusOr<DestinationRam> DestinationRam::Create(
    RamLayout layout, const std::vector<DestinationRegion>& regions) {
  if (regions.size() != layout.regions().size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the layout has ", layout.regions().size(),
                     " regions, but memory was given for ", regions.size()));
  }
  std::vector<Mapped> mapped;
  for (size_t i = 0; i < regions.size(); ++i) {
    absl::Status status = CheckRegion(layout, regions, i);
    if (!status.ok()) return status;
    UniqueFd fd(::fcntl(regions[i].memory_fd, F_DUPFD_CLOEXEC, 0));
    if (!fd.valid()) {
      return absl::ResourceExhaustedError(
          "no descriptor is left for a region's memory: raise LimitNOFILE");
    }
    const Region& region = layout.regions()[i];
    mapped.push_back({{PageOf(region.start), PagesIn(region.length)},
                      regions[i].host_address,
                      std::move(fd),
                      regions[i].fd_offset});
  }
  return DestinationRam(std::move(layout), std::move(mapped));
}

DestinationRam::DestinationRam(RamLayout layout, std::vector<Mapped> regions)
    : layout_(std::move(layout)), regions_(std::move(regions)) {
  for (size_t i = 0; i < regions_.size(); ++i) by_address_.push_back(i);
  std::sort(by_address_.begin(), by_address_.end(), [this](size_t a, size_t b) {
    return regions_[a].address < regions_[b].address;
  });
}

DestinationRam::Piece DestinationRam::region(size_t index) const {
  POSTCOPY_CHECK(index < regions_.size());
  return FirstPiece(regions_[index].pages);
}

DestinationRam::Piece DestinationRam::FirstPiece(PageRun run) const {
  const Mapped& region = regions_[layout_.RegionOf(run.first)];
  const PageCount count = std::min(run.count, region.pages.end() - run.first);
  POSTCOPY_CHECK(!count.empty());
  const ByteCount skipped = BytesIn(run.first - region.pages.first);
  return {
      .pages = {run.first, count},
      .address = region.address + skipped,
      .fd = region.fd.get(),
      .file_offset = static_cast<off_t>(region.fd_offset + skipped.value())};
}

std::optional<PageIndex> DestinationRam::PageAt(HostAddress address) const {
  const auto after = std::upper_bound(
      by_address_.begin(), by_address_.end(), address,
      [this](HostAddress a, size_t i) { return a < regions_[i].address; });
  if (after == by_address_.begin()) return std::nullopt;
  const Mapped& region = regions_[*(after - 1)];
  const PageCount into((address - region.address).value() / kPageSize);
  if (into >= region.pages.count) return std::nullopt;
  return region.pages.first + into;
}

bool DestinationRam::HasData(PageIndex page) const {
  const Piece piece = FirstPiece({page, PageCount(1)});
  const off_t data = ::lseek(piece.fd, piece.file_offset, SEEK_DATA);
  if (data < 0) return errno != ENXIO;  // no data from here to the end
  return data == piece.file_offset;
}

}  // namespace postcopy
