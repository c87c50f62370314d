#include "uffd/destination_ram.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/check.h"

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
  const uint64_t page_size = region.page_size.value();
  if (given.host_address.value() % page_size != 0 ||
      given.fd_offset % page_size != 0) {
    return Bad(region.name,
               absl::StrCat("its host address and file offset must be "
                            "multiples of ",
                            page_size));
  }
  if (given.host_address == HostAddress(0)) {
    return Bad(region.name, "its host address is 0");
  }
  if (!Fits(given.host_address.value(), region.length) ||
      !Fits(given.fd_offset, region.length)) {
    return Bad(region.name, "its host address or file offset is too large");
  }
  return absl::OkStatus();
}

// True if the file is one whose pages are of `page_size`.
bool IsOfItsPages(int fd, ByteCount page_size) {
  struct statfs file_system = {};
  if (::fstatfs(fd, &file_system) != 0) return false;
  if (page_size == ByteCount(kPageSize)) {
    return file_system.f_type == TMPFS_MAGIC;
  }
  return file_system.f_type == HUGETLBFS_MAGIC &&
         static_cast<uint64_t>(file_system.f_bsize) == page_size.value();
}

absl::Status CheckFile(const Region& region, const DestinationRegion& given) {
  if (given.memory_fd < 0) return absl::OkStatus();
  const int flags = ::fcntl(given.memory_fd, F_GETFL);
  if (flags < 0) return Bad(region.name, "its memory descriptor is not open");
  // With O_APPEND pwrite() ignores its offset: BUGS in pwrite(2).
  if ((flags & O_ACCMODE) != O_RDWR || (flags & O_APPEND)) {
    return Bad(region.name,
               "its memory descriptor must be O_RDWR and not O_APPEND");
  }
  if (!IsOfItsPages(given.memory_fd, region.page_size)) {
    return Bad(region.name,
               absl::StrCat("it was described with pages of ",
                            ToString(region.page_size),
                            ": its memory must be a memfd, or a file on tmpfs "
                            "or hugetlbfs, with such pages"));
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
  if (a_given.memory_fd < 0 || b_given.memory_fd < 0 ||
      !Overlap(a_given.fd_offset, a.length, b_given.fd_offset, b.length)) {
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

// A descriptor of our own, with flags and an offset of our own: the VMM could
// set O_APPEND, with which pwrite() ignores where it is told to write. A file
// that may not be opened again (its mode) is shared with the VMM. None where
// none is given.
absl::StatusOr<UniqueFd> OpenIfAny(int fd) {
  if (fd < 0) return UniqueFd();
  UniqueFd own(
      ::open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_RDWR | O_CLOEXEC));
  if (own.valid()) return own;
  return Duplicate(fd);
}

// The file of a region: the VMM's, or one for what it is to be given.
absl::StatusOr<UniqueFd> FileOf(const Region& region,
                                const DestinationRegion& given) {
  if (given.memory_fd >= 0 || !given.staged) return OpenIfAny(given.memory_fd);
  return CreateMemfd("postcopy-staging", region.length,
                     F_SEAL_SHRINK | F_SEAL_GROW);
}

// Has the huge pages reserved that are not yet, so that they can be had when
// they are needed: none is after a hole was punched. Who reserves them is a
// mapping, and they stay so behind its end, since they are the file's. 0, or
// the errno.
int Reserve(int fd, uint64_t offset, ByteCount length) {
  void* const mapping = ::mmap(nullptr, length.value(), PROT_READ, MAP_SHARED,
                               fd, static_cast<off_t>(offset));
  if (mapping == MAP_FAILED) return errno;
  ::munmap(mapping, length.value());
  return 0;
}

absl::StatusOr<SharedMapping> AliasOf(const Region& region,
                                      const DestinationRegion& given, int fd) {
  if (region.page_size == ByteCount(kPageSize) || given.memory_fd < 0) {
    return SharedMapping();
  }
  if (const int error = Reserve(fd, given.fd_offset, region.length)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "region \"", region.name, "\": its ", ToString(region.length),
        " cannot be reserved in pages of ", ToString(region.page_size), ": ",
        ::strerrordesc_np(error), "; raise vm.nr_hugepages"));
  }
  return SharedMapping::Map(fd, ByteCount(given.fd_offset), region.length,
                            SharedMapping::Access::kReadWrite);
}

// The kernel copies from this process to itself, and says EFAULT where a store
// would be SIGBUS: the file was shortened, or there is no huge page left.
ssize_t WriteByKernel(uint8_t* to, const uint8_t* from, size_t length) {
  const iovec local = {.iov_base = to, .iov_len = length};
  const iovec remote = {.iov_base = const_cast<uint8_t*>(from),
                        .iov_len = length};
  const ssize_t written =
      ::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0);
  if (written < 0 && errno == EFAULT) errno = ENOMEM;
  return written;
}

}  // namespace

int DestinationRam::Piece::Write(const uint8_t* source, ByteCount* done) const {
  POSTCOPY_CHECK(has_file());
  *done = ByteCount(0);
  while (*done < bytes()) {
    const uint8_t* const from = source + done->value();
    const size_t length = (bytes() - *done).value();
    const ssize_t written =
        alias != nullptr
            ? WriteByKernel(alias + done->value(), from, length)
            : ::pwrite(fd, from, length,
                       file_offset + static_cast<off_t>(done->value()));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    if (written == 0) return EIO;  // would repeat for ever
    *done += ByteCount(written);
  }
  return 0;
}

int DestinationRam::Piece::PunchHole() const {
  POSTCOPY_CHECK(has_file());
  int result = 0;
  do {
    result = ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         file_offset, static_cast<off_t>(bytes().value()));
  } while (result != 0 && errno == EINTR);
  if (result != 0) return errno;
  return alias == nullptr ? 0 : Reserve(fd, file_offset, bytes());
}

int DestinationRam::Piece::Clear() const {
  if (alias == nullptr) return PunchHole();
  static constexpr std::array<uint8_t, kPageSize> kZeros{};
  Piece page = *this;
  page.pages.count = PageCount(1);
  for (uint64_t i = 0; i < pages.count.value(); ++i) {
    ByteCount done;
    page.alias = alias + i * kPageSize;
    if (const int error = page.Write(kZeros.data(), &done)) return error;
  }
  return 0;
}

absl::StatusOr<DestinationRam> DestinationRam::Create(
    RamLayout layout, const std::vector<DestinationRegion>& regions) {
  if (regions.size() != layout.regions().size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the layout has ", layout.regions().size(),
                     " regions, but memory was given for ", regions.size()));
  }
  std::vector<Memory> memory;
  for (size_t i = 0; i < regions.size(); ++i) {
    absl::Status status = CheckRegion(layout, regions, i);
    if (!status.ok()) return status;
    const Region& region = layout.regions()[i];
    const bool staged = regions[i].memory_fd < 0 && regions[i].staged;
    absl::StatusOr<UniqueFd> fd = FileOf(region, regions[i]);
    if (!fd.ok()) return fd.status();
    absl::StatusOr<SharedMapping> alias =
        AliasOf(region, regions[i], fd->get());
    if (!alias.ok()) return alias.status();
    memory.push_back({{PageOf(region.start), PagesIn(region.length)},
                      regions[i].host_address,
                      *std::move(fd),
                      staged ? 0 : regions[i].fd_offset,
                      PagesIn(region.page_size),
                      staged,
                      *std::move(alias)});
  }
  return DestinationRam(std::move(layout), std::move(memory));
}

DestinationRam::DestinationRam(RamLayout layout, std::vector<Memory> regions)
    : layout_(std::move(layout)), regions_(std::move(regions)) {
  std::vector<Part> parts;
  for (size_t i = 0; i < regions_.size(); ++i) {
    parts.push_back({regions_[i].pages, regions_[i].address, i});
    largest_unit_ = std::max(largest_unit_, regions_[i].unit);
  }
  Replace(std::move(parts));
}

void DestinationRam::Replace(std::vector<Part> parts) {
  parts_ = std::move(parts);
  by_address_.clear();
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].address != HostAddress(0)) by_address_.push_back(i);
  }
  std::sort(by_address_.begin(), by_address_.end(), [this](size_t a, size_t b) {
    return parts_[a].address < parts_[b].address;
  });
}

DestinationRam::Piece DestinationRam::region(size_t index) const {
  POSTCOPY_CHECK(index < regions_.size());
  const Memory& memory = regions_[index];
  return PieceOf({memory.pages, memory.address, index}, memory.pages);
}

DestinationRam::Piece DestinationRam::FirstPiece(PageRun run) const {
  POSTCOPY_CHECK(!run.count.empty() && run.first < parts_.back().pages.end());
  const auto after = std::upper_bound(
      parts_.begin(), parts_.end(), run.first,
      [](PageIndex page, const Part& part) { return page < part.pages.first; });
  return PieceOf(*(after - 1), run);
}

// The beginning of `run`, whose first page lies in `part`.
DestinationRam::Piece DestinationRam::PieceOf(const Part& part,
                                              PageRun run) const {
  const Memory& memory = regions_[part.region];
  const PageCount count = std::min(run.count, part.pages.end() - run.first);
  const ByteCount into_part = BytesIn(run.first - part.pages.first);
  const ByteCount into_region = BytesIn(run.first - memory.pages.first);
  const bool mapped = part.address != HostAddress(0);
  return {
      .pages = {run.first, count},
      .address = mapped ? part.address + into_part : HostAddress(0),
      .fd = memory.fd.get(),
      .file_offset = static_cast<off_t>(memory.fd_offset + into_region.value()),
      .unit = memory.unit,
      .staged = memory.staged,
      .alias = memory.alias.data() == nullptr
                   ? nullptr
                   : memory.alias.data() + into_region.value()};
}

PageRun DestinationRam::UnitOf(PageIndex page) const {
  if (largest_unit_ == PageCount(1)) return {page, largest_unit_};
  const Memory& memory = regions_[layout_.RegionOf(page)];
  const uint64_t into = (page - memory.pages.first).value();
  const PageCount skipped(into / memory.unit.value() * memory.unit.value());
  return {memory.pages.first + skipped, memory.unit};
}

PageRun DestinationRam::WholeUnits(PageRun run) const {
  if (run.count.empty() || largest_unit_ == PageCount(1)) return run;
  const PageRun head = UnitOf(run.first);
  const PageRun tail = UnitOf(run.first + run.count - PageCount(1));
  const PageIndex first = head.first == run.first ? head.first : head.end();
  const PageIndex end = tail.end() == run.end() ? tail.end() : tail.first;
  return {first, first < end ? end - first : PageCount(0)};
}

PageRun DestinationRam::RequestFor(PageRun run) const {
  const PageRun unit = UnitOf(run.first);
  if (unit.count > PageCount(1)) return unit;
  const Memory& memory = regions_[layout_.RegionOf(run.first)];
  return {run.first, std::min(run.count, memory.pages.end() - run.first)};
}

bool DestinationRam::has_files() const {
  return std::all_of(regions_.begin(), regions_.end(),
                     [](const Memory& memory) { return memory.fd.valid(); });
}

bool DestinationRam::has_staging() const {
  return std::any_of(regions_.begin(), regions_.end(),
                     [](const Memory& memory) { return memory.staged; });
}

bool DestinationRam::AnyStaged() const {
  return std::any_of(
      regions_.begin(), regions_.end(), [](const Memory& memory) {
        return memory.staged &&
               (::lseek(memory.fd.get(), 0, SEEK_DATA) >= 0 || errno != ENXIO);
      });
}

std::optional<PageIndex> DestinationRam::PageAt(HostAddress address) const {
  const auto after = std::upper_bound(
      by_address_.begin(), by_address_.end(), address,
      [this](HostAddress a, size_t i) { return a < parts_[i].address; });
  if (after == by_address_.begin()) return std::nullopt;
  const Part& part = parts_[*(after - 1)];
  const PageCount into((address - part.address).value() / kPageSize);
  if (into >= part.pages.count) return std::nullopt;
  return part.pages.first + into;
}

std::vector<PageRun> DestinationRam::PagesAt(HostAddress address,
                                             ByteCount length) const {
  std::vector<PageRun> runs;
  const HostAddress end = address + length;
  for (const size_t i : by_address_) {
    const Part& part = parts_[i];
    const HostAddress first = std::max(address, part.address);
    const HostAddress last = std::min(end, part.address + part.bytes());
    if (first >= last) continue;
    runs.push_back({part.pages.first + PagesIn(first - part.address),
                    PagesIn(last - first)});
  }
  return runs;
}

absl::StatusOr<std::vector<DestinationRam::Part>> DestinationRam::CutAt(
    HostAddress address, ByteCount length) const {
  std::vector<Part> parts;
  for (const Part& part : parts_) {
    Part rest = part;
    for (const HostAddress cut : {address, address + length}) {
      const bool inside = rest.address != HostAddress(0) &&
                          cut > rest.address &&
                          cut < rest.address + rest.bytes();
      if (!inside) continue;
      const PageCount before = PagesIn(cut - rest.address);
      parts.push_back({{rest.pages.first, before}, rest.address, rest.region});
      rest = {{rest.pages.first + before, rest.pages.count - before},
              cut,
              rest.region};
    }
    parts.push_back(rest);
  }
  if (parts.size() <= kMaxMappedParts) return parts;
  return absl::ResourceExhaustedError(absl::StrCat(
      "the VMM has broken its memory into more than ", kMaxMappedParts,
      " mappings: it must not move guest RAM about while pages are missing"));
}

absl::Status DestinationRam::Remap(HostAddress from, HostAddress to,
                                   ByteCount length) {
  absl::Status unmapped = Unmap(to, length);
  if (!unmapped.ok()) return unmapped;
  absl::StatusOr<std::vector<Part>> parts = CutAt(from, length);
  if (!parts.ok()) return parts.status();
  for (Part& part : *parts) {
    if (part.address >= from && part.address < from + length) {
      part.address = to + (part.address - from);
    }
  }
  Replace(*std::move(parts));
  return absl::OkStatus();
}

absl::Status DestinationRam::Unmap(HostAddress address, ByteCount length) {
  absl::StatusOr<std::vector<Part>> parts = CutAt(address, length);
  if (!parts.ok()) return parts.status();
  for (Part& part : *parts) {
    if (part.address >= address && part.address < address + length) {
      part.address = HostAddress(0);
    }
  }
  Replace(*std::move(parts));
  return absl::OkStatus();
}

bool DestinationRam::HasData(PageIndex page) const {
  const Piece piece = FirstPiece(UnitOf(page));
  POSTCOPY_CHECK(piece.has_file());
  const off_t data = ::lseek(piece.fd, piece.file_offset, SEEK_DATA);
  if (data < 0) return errno != ENXIO;  // no data from here to the end
  return data < piece.file_offset + static_cast<off_t>(piece.bytes().value());
}

}  // namespace postcopy
