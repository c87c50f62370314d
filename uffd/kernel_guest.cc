#include "uffd/kernel_guest.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"
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
  std::vector<Region> regions;
  RamOffset start;
  for (const PageCount size : sizes) {
    regions.push_back({.name = absl::StrCat("ram", regions.size()),
                       .start = start,
                       .length = BytesIn(size)});
    start = regions.back().end();
  }
  absl::StatusOr<RamLayout> layout = RamLayout::Create(std::move(regions));
  POSTCOPY_CHECK(layout.ok());
  return *std::move(layout);
}

std::unique_ptr<KernelGuest> KernelGuest::Create(
    const std::vector<PageCount>& sizes, std::string* reason) {
  absl::StatusOr<NewUserfaultfd> uffd = CreateUserfaultfd();
  if (!uffd.ok()) {
    *reason = std::string(uffd.status().message());
    return nullptr;
  }
  absl::StatusOr<std::unique_ptr<KernelUffd>> ops =
      KernelUffd::Adopt(std::move(uffd->fd));
  POSTCOPY_CHECK(ops.ok());
  std::unique_ptr<KernelGuest> guest(new KernelGuest(LayoutOf(sizes)));
  guest->ops_ = *std::move(ops);
  for (const Region& region : guest->layout_.regions()) {
    absl::StatusOr<UniqueFd> fd = CreateMemfd(
        region.name, region.length + ByteCount(kFdOffset), F_SEAL_SHRINK);
    POSTCOPY_CHECK(fd.ok());
    absl::StatusOr<SharedMapping> mapping =
        SharedMapping::Map(fd->get(), ByteCount(kFdOffset), region.length,
                           SharedMapping::Access::kReadWrite);
    POSTCOPY_CHECK(mapping.ok());
    guest->memory_.push_back({*std::move(fd), *std::move(mapping)});
  }
  return guest;
}

std::vector<DestinationRegion> KernelGuest::regions() const {
  std::vector<DestinationRegion> regions;
  for (const Memory& memory : memory_) {
    const auto address = reinterpret_cast<uintptr_t>(memory.mapping.data());
    regions.push_back({HostAddress(address), memory.fd.get(), kFdOffset});
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
  return memory(page).mapping.data() + OffsetInRegion(page);
}

HostAddress KernelGuest::address(PageIndex page) const {
  return HostAddress(reinterpret_cast<uintptr_t>(at(page)));
}

void KernelGuest::WriteFile(PageIndex page,
                            absl::Span<const uint8_t> bytes) const {
  POSTCOPY_CHECK(::pwrite(memory(page).fd.get(), bytes.data(), bytes.size(),
                          kFdOffset + OffsetInRegion(page)) ==
                 static_cast<ssize_t>(bytes.size()));
}

void KernelGuest::Punch(PageIndex page) const {
  POSTCOPY_CHECK(::fallocate(memory(page).fd.get(),
                             FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                             kFdOffset + OffsetInRegion(page), kPageSize) == 0);
}

bool KernelGuest::HasData(PageIndex page) const {
  const off_t offset = static_cast<off_t>(kFdOffset + OffsetInRegion(page));
  return ::lseek(memory(page).fd.get(), offset, SEEK_DATA) == offset;
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
