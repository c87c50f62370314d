#include "uffd/kernel_guest.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"
#include "dirtytrack/memfd.h"
#include "uffd/kernel_uffd.h"

namespace postcopy {
namespace {

constexpr uint64_t kWordsPerPage = kPageSize / sizeof(uint64_t);

uint64_t WordOf(PageIndex page, uint64_t word) {
  // Never 0, and 0 is what a lost page would be.
  return ((page.value() * kWordsPerPage + word) * 0x9e3779b97f4a7c15) | 1;
}

}  // namespace

std::vector<uint8_t> PatternOf(PageIndex page) {
  return PatternOf(PageRun{page, PageCount(1)});
}

std::vector<uint8_t> PatternOf(PageRun run) {
  std::vector<uint8_t> bytes(BytesIn(run.count).value());
  for (uint64_t i = 0; i < bytes.size() / sizeof(uint64_t); ++i) {
    const uint64_t word =
        WordOf(run.first + PageCount(i / kWordsPerPage), i % kWordsPerPage);
    std::memcpy(bytes.data() + i * sizeof(word), &word, sizeof(word));
  }
  return bytes;
}

bool HasPattern(const uint8_t* bytes, PageIndex page) {
  for (uint64_t i = 0; i < kWordsPerPage; ++i) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + i * sizeof(word), sizeof(word));
    if (word != WordOf(page, i)) return false;
  }
  return true;
}

RamLayout LayoutOf(const std::vector<PageCount>& sizes) {
  std::vector<GuestRegion> regions;
  for (const PageCount pages : sizes) regions.push_back({.pages = pages});
  return LayoutOf(regions);
}

RamLayout LayoutOf(const std::vector<GuestRegion>& guest_regions) {
  std::vector<Region> regions;
  RamOffset start;
  for (const GuestRegion& guest_region : guest_regions) {
    const bool huge = IsHuge(guest_region.kind);
    regions.push_back(
        {.name = absl::StrCat("ram", regions.size()),
         .start = start,
         .length = BytesIn(guest_region.pages),
         .page_size = huge ? kHugePageSize : ByteCount(kPageSize)});
    start = regions.back().end();
  }
  absl::StatusOr<RamLayout> layout =
      RamLayout::Create(std::move(regions), RegionPages::kSmallOrHuge);
  POSTCOPY_CHECK(layout.ok());
  return *std::move(layout);
}

std::string NameOf(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kMemfd:
      return "Memfd";
    case MemoryKind::kMinor:
      return "Minor";
    case MemoryKind::kAnonymous:
      return "Anonymous";
    case MemoryKind::kHugetlb:
      return "Hugetlb";
    case MemoryKind::kStaged:
      return "Staged";
    case MemoryKind::kHugetlbStaged:
      return "HugetlbStaged";
    case MemoryKind::kHugetlbFile:
      return "HugetlbFile";
  }
  return "";
}

bool HasFile(MemoryKind kind) {
  return kind == MemoryKind::kMemfd || kind == MemoryKind::kMinor ||
         kind == MemoryKind::kHugetlbFile;
}

bool IsHuge(MemoryKind kind) {
  return kind == MemoryKind::kHugetlb || kind == MemoryKind::kHugetlbStaged ||
         kind == MemoryKind::kHugetlbFile;
}

uint64_t KernelGuest::FdOffset(MemoryKind kind) {
  return IsHuge(kind) ? kHugePageSize.value() : kPageSize;
}

void KernelGuest::Unmapper::operator()(uint8_t* data) const {
  if (hole_end == 0) {
    ::munmap(data, length);
    return;
  }
  if (hole_begin > 0) ::munmap(data, hole_begin);
  if (hole_end < length) ::munmap(data + hole_end, length - hole_end);
}

std::unique_ptr<KernelGuest> KernelGuest::Create(
    const std::vector<PageCount>& sizes, std::string* reason) {
  std::vector<GuestRegion> regions;
  for (const PageCount pages : sizes) regions.push_back({.pages = pages});
  return Create(regions, /*features=*/0, reason);
}

std::unique_ptr<KernelGuest> KernelGuest::Create(
    const std::vector<GuestRegion>& regions, uint64_t features,
    std::string* reason) {
  for (const GuestRegion& region : regions) {
    if (region.kind == MemoryKind::kMinor) features |= UFFD_FEATURE_MINOR_SHMEM;
  }
  absl::StatusOr<NewUserfaultfd> uffd = CreateUserfaultfd(features);
  if (!uffd.ok()) {
    *reason = std::string(uffd.status().message());
    return nullptr;
  }
  absl::StatusOr<std::unique_ptr<KernelUffd>> ops =
      KernelUffd::Adopt(std::move(uffd->fd));
  POSTCOPY_CHECK(ops.ok());
  std::unique_ptr<KernelGuest> guest(new KernelGuest(LayoutOf(regions)));
  guest->ops_ = *std::move(ops);
  for (size_t i = 0; i < regions.size(); ++i) {
    absl::StatusOr<Memory> memory =
        MapMemory(regions[i].kind, guest->layout_.regions()[i]);
    if (!memory.ok()) {
      *reason = std::string(memory.status().message());
      return nullptr;
    }
    guest->memory_.push_back(*std::move(memory));
  }
  return guest;
}

absl::StatusOr<KernelGuest::Memory> KernelGuest::MapMemory(
    MemoryKind kind, const Region& region) {
  Memory memory{.kind = kind, .fd = UniqueFd(), .data = {nullptr, {}}};
  int flags = MAP_SHARED;
  if (kind == MemoryKind::kHugetlbFile) {
    memory.fd = UniqueFd(
        ::memfd_create(region.name.c_str(), MFD_CLOEXEC | MFD_HUGETLB));
    const auto size =
        static_cast<off_t>(region.length.value() + FdOffset(kind));
    if (::ftruncate(memory.fd.get(), size) != 0) {
      return absl::ResourceExhaustedError("no memfd of huge pages");
    }
  } else if (HasFile(kind)) {
    absl::StatusOr<UniqueFd> fd = CreateMemfd(
        region.name, region.length + ByteCount(FdOffset(kind)), F_SEAL_SHRINK);
    if (!fd.ok()) return fd.status();
    memory.fd = *std::move(fd);
  } else {
    flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (IsHuge(kind)) flags |= MAP_HUGETLB;
  }
  void* const data = ::mmap(
      nullptr, region.length.value(), PROT_READ | PROT_WRITE, flags,
      memory.fd.get(), HasFile(kind) ? static_cast<off_t>(FdOffset(kind)) : 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no ", ToString(region.length), " of memory ", NameOf(kind), ": ",
        ::strerrordesc_np(errno), " (huge pages: /proc/sys/vm/nr_hugepages)"));
  }
  memory.data = std::unique_ptr<uint8_t, Unmapper>(
      static_cast<uint8_t*>(data), Unmapper{.length = region.length.value()});
  return memory;
}

std::vector<DestinationRegion> KernelGuest::regions() const {
  std::vector<DestinationRegion> regions;
  for (const Memory& memory : memory_) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data.get());
    DestinationRegion region = {.host_address = HostAddress(address)};
    if (HasFile(memory.kind)) {
      region.memory_fd = memory.fd.get();
      region.fd_offset = FdOffset(memory.kind);
    }
    region.staged = memory.kind == MemoryKind::kStaged ||
                    memory.kind == MemoryKind::kHugetlbStaged;
    regions.push_back(region);
  }
  return regions;
}

const KernelGuest::Memory& KernelGuest::memory(PageIndex page) const {
  return memory_[layout_.RegionOf(page)];
}

uint64_t KernelGuest::OffsetInRegion(PageIndex page) const {
  const Region& region = layout_.regions()[layout_.RegionOf(page)];
  return (OffsetOf(page) - region.start).value();
}

uint8_t* KernelGuest::at(PageIndex page) const {
  return memory(page).data.get() + OffsetInRegion(page);
}

HostAddress KernelGuest::address(PageIndex page) const {
  return HostAddress(reinterpret_cast<uintptr_t>(at(page)));
}

void KernelGuest::WriteFile(PageIndex page,
                            absl::Span<const uint8_t> bytes) const {
  POSTCOPY_CHECK(::pwrite(memory(page).fd.get(), bytes.data(), bytes.size(),
                          FdOffset(memory(page).kind) + OffsetInRegion(page)) ==
                 static_cast<ssize_t>(bytes.size()));
}

void KernelGuest::Punch(PageIndex page) const {
  POSTCOPY_CHECK(::fallocate(memory(page).fd.get(),
                             FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                             FdOffset(memory(page).kind) + OffsetInRegion(page),
                             kPageSize) == 0);
}

bool KernelGuest::HasData(PageIndex page) const {
  const off_t offset =
      static_cast<off_t>(FdOffset(memory(page).kind) + OffsetInRegion(page));
  return ::lseek(memory(page).fd.get(), offset, SEEK_DATA) == offset;
}

void KernelGuest::GiveUp(PageRun run) const {
  const int advice =
      HasFile(memory(run.first).kind) ? MADV_REMOVE : MADV_DONTNEED;
  POSTCOPY_CHECK(::madvise(at(run.first), BytesIn(run.count).value(), advice) ==
                 0);
}

void KernelGuest::Leave(PageRun run) {
  Unmapper& unmapper = memory_[layout_.RegionOf(run.first)].data.get_deleter();
  unmapper.hole_begin = OffsetInRegion(run.first);
  unmapper.hole_end = unmapper.hole_begin + BytesIn(run.count).value();
}

bool KernelCanRead(const uint8_t* address) {
  int ends[2];
  POSTCOPY_CHECK(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  const ssize_t written = ::write(writer.get(), address, 1);
  POSTCOPY_CHECK(written == 1 || errno == EFAULT);
  return written == 1;
}

}  // namespace postcopy
