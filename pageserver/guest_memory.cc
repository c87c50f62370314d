#include "pageserver/guest_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

absl::Status Truncated(const Region& region, uint64_t file_bytes) {
  return absl::DataLossError(absl::StrCat(
      "the file of region \"", region.name, "\" ends at byte ", file_bytes,
      ", inside the region: the VMM must not truncate guest RAM"));
}

// OK if the file reaches up to byte `end`: nothing that lseek calls a hole at
// the end of the file is what somebody has cut off.
absl::Status CheckReaches(int fd, uint64_t end, const Region& region) {
  struct stat info;
  if (::fstat(fd, &info) != 0) {
    return absl::InternalError(absl::StrCat("cannot read the size of region \"",
                                            region.name,
                                            "\": ", strerror(errno)));
  }
  const auto size = static_cast<uint64_t>(info.st_size);
  return size < end ? Truncated(region, size) : absl::OkStatus();
}

// cachestat(2) of Linux 6.5, which neither Debian 12's headers nor its libc
// know: include/uapi/linux/mman.h.
constexpr long kCachestat = 451;
struct CacheRange {
  uint64_t offset = 0;
  uint64_t length = 0;
};
struct CacheStat {
  uint64_t cached = 0;
  uint64_t dirty = 0;
  uint64_t writeback = 0;
  uint64_t evicted = 0;
  uint64_t recently_evicted = 0;
};
static_assert(sizeof(CacheRange) == 16 && sizeof(CacheStat) == 40);

// The pages of [offset, offset + length); nullopt where the kernel, a seccomp
// profile or the file system does not tell.
std::optional<CacheStat> AskCache(int fd, uint64_t offset, uint64_t length) {
  const CacheRange range = {.offset = offset, .length = length};
  CacheStat stat;
  if (::syscall(kCachestat, fd, &range, &stat, 0) != 0) return std::nullopt;
  return stat;
}

bool IsOfProcess(int fd) {
  struct statfs info = {};
  return ::fstatfs(fd, &info) == 0 && info.f_type == PROC_SUPER_MAGIC;
}

absl::Status ProcessEnded(const Region& region) {
  return absl::DataLossError(absl::StrCat(
      "the VMM has ended, and with it region \"", region.name,
      "\", which is private to it: it must not end before it is told that the ",
      "migration has"));
}

absl::Status PreadAll(int fd, bool of_process, uint64_t offset,
                      absl::Span<uint8_t> bytes, const Region& region) {
  while (!bytes.empty()) {
    const ssize_t n =
        ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return absl::InternalError(absl::StrCat("cannot read region \"",
                                              region.name, "\" at file offset ",
                                              offset, ": ", strerror(errno)));
    }
    if (n == 0 && of_process) return ProcessEnded(region);
    if (n == 0) return Truncated(region, offset);
    bytes.remove_prefix(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GuestMemory>> GuestMemory::Create(
    RamLayout layout, absl::Span<const RegionFile> files) {
  POSTCOPY_CHECK(files.size() == layout.regions().size());
  std::vector<Backing> backings;
  for (const RegionFile& file : files) {
    UniqueFd fd(::fcntl(file.fd, F_DUPFD_CLOEXEC, 0));
    if (!fd.valid()) {
      return absl::InternalError(absl::StrCat(
          "cannot duplicate the descriptor of guest RAM: ", strerror(errno),
          "; raise LimitNOFILE"));
    }
    const bool of_process = IsOfProcess(fd.get());
    // cachestat(2) takes all of a process's memory for not cached.
    const Absence absence = of_process ? Absence::kUntold : AbsenceOf(fd.get());
    backings.push_back({std::move(fd), file.offset, absence, of_process});
  }
  return std::unique_ptr<GuestMemory>(
      new GuestMemory(std::move(layout), std::move(backings)));
}

GuestMemory::GuestMemory(RamLayout layout, std::vector<Backing> backings)
    : layout_(std::move(layout)), backings_(std::move(backings)) {
  struct stat info = {};
  if (::fstat(backings_.front().fd.get(), &info) == 0) disk_ = info.st_dev;
}

GuestMemory::Absence GuestMemory::AbsenceOf(int fd) {
  struct statfs info = {};
  if (::fstatfs(fd, &info) != 0) return Absence::kUntold;
  if (!AskCache(fd, 0, kPageSize).has_value()) return Absence::kUntold;
  return info.f_type == TMPFS_MAGIC ? Absence::kSwappedOut
                                    : Absence::kNotCached;
}

bool GuestMemory::MayWait(PageRun run) const {
  if (!layout_.Check(run.first, run.count).ok()) return false;
  while (!run.count.empty()) {
    const size_t region = layout_.RegionOf(run.first);
    const Backing& backing = backings_[region];
    const PageRun part = WithinRegion(run, region);
    run = {part.end(), run.count - part.count};
    if (backing.absence == Absence::kUntold) continue;
    const std::optional<CacheStat> pages =
        AskCache(backing.fd.get(), FileOffset(part.first, region),
                 BytesIn(part.count).value());
    if (!pages.has_value()) continue;
    // Of a memfd, what was evicted is in the swap, and what is in neither is a
    // hole. Of a file, what was evicted is forgotten after a while.
    const bool absent = backing.absence == Absence::kSwappedOut
                            ? pages->evicted > 0
                            : pages->cached < part.count.value();
    if (absent) return true;
  }
  return false;
}

PageRun GuestMemory::WithinRegion(PageRun run, size_t region) const {
  const PageIndex region_end = PageOf(layout_.regions()[region].end());
  return {run.first, std::min(run.end(), region_end) - run.first};
}

uint64_t GuestMemory::FileOffset(PageIndex page, size_t region) const {
  const ByteCount into = OffsetOf(page) - layout_.regions()[region].start;
  return backings_[region].offset + into.value();
}

absl::Status GuestMemory::Read(PageRun run, absl::Span<uint8_t> bytes) const {
  if (absl::Status s = layout_.Check(run.first, run.count); !s.ok()) return s;
  POSTCOPY_CHECK(bytes.size() == BytesIn(run.count).value());
  while (!run.count.empty()) {
    const size_t region = layout_.RegionOf(run.first);
    const PageRun part = WithinRegion(run, region);
    const size_t length = BytesIn(part.count).value();
    absl::Status status =
        PreadAll(backings_[region].fd.get(), backings_[region].of_process,
                 FileOffset(part.first, region), bytes.subspan(0, length),
                 layout_.regions()[region]);
    if (!status.ok()) return status;
    bytes.remove_prefix(length);
    run = {part.end(), run.count - part.count};
  }
  return absl::OkStatus();
}

ByteCount GuestMemory::Allocated() const {
  constexpr uint64_t kBlockBytes = 512;  // of stat(2)
  std::map<std::pair<dev_t, ino_t>, uint64_t> files;
  uint64_t allocated = 0;
  for (size_t i = 0; i < backings_.size(); ++i) {
    const Backing& backing = backings_[i];
    if (backing.of_process) allocated += layout_.regions()[i].length.value();
    if (backing.of_process) continue;
    struct stat info;
    if (::fstat(backing.fd.get(), &info) != 0) continue;
    files[{info.st_dev, info.st_ino}] =
        static_cast<uint64_t>(info.st_blocks) * kBlockBytes;
  }
  const uint64_t most = BytesIn(layout_.pages()).value();
  for (const auto& [file, bytes] : files) {
    allocated += std::min(bytes, most - allocated);
  }
  return ByteCount(allocated);
}

absl::StatusOr<PageIndex> GuestMemory::NextData(PageIndex from,
                                                PageIndex end) const {
  while (from < end) {
    const size_t region = layout_.RegionOf(from);
    if (backings_[region].of_process) return from;
    const PageRun part = WithinRegion({from, end - from}, region);
    const uint64_t start = FileOffset(from, region);
    // Where data ends is not asked for: SEEK_HOLE walks all of it, page by
    // page, and made sparse rounds a thousand times slower.
    const off_t data = ::lseek(backings_[region].fd.get(),
                               static_cast<off_t>(start), SEEK_DATA);
    if (data < 0 && errno != ENXIO) {
      return absl::InternalError(absl::StrCat(
          "cannot look for holes in region \"", layout_.regions()[region].name,
          "\": ", strerror(errno)));
    }
    // ENXIO: no data from here to the end of the file.
    if (data < 0) {
      absl::Status status = CheckReaches(backings_[region].fd.get(),
                                         start + BytesIn(part.count).value(),
                                         layout_.regions()[region]);
      if (!status.ok()) return status;
    }
    const uint64_t skipped =
        data < 0 ? part.count.value()
                 : (static_cast<uint64_t>(data) - start) / kPageSize;
    if (skipped < part.count.value()) return from + PageCount(skipped);
    from = part.end();
  }
  return end;
}

}  // namespace postcopy
