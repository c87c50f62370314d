#include "pageserver/test_guest.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"
#include "dirtytrack/memfd.h"

namespace postcopy {
namespace {

RamLayout MakeLayout(const std::vector<uint64_t>& region_pages) {
  std::vector<Region> regions;
  RamOffset start;
  for (uint64_t pages : region_pages) {
    regions.push_back({.name = absl::StrCat("r", regions.size()),
                       .start = start,
                       .length = BytesIn(PageCount(pages))});
    start = regions.back().end();
  }
  absl::StatusOr<RamLayout> layout = RamLayout::Create(std::move(regions));
  POSTCOPY_CHECK(layout.ok());
  return *std::move(layout);
}

UniqueFd MakeFile(ByteCount ram_bytes) {
  absl::StatusOr<UniqueFd> fd = CreateMemfd(
      "test-guest", ByteCount(TestGuest::kFileOffset) + ram_bytes, 0);
  POSTCOPY_CHECK(fd.ok());
  return *std::move(fd);
}

off_t FileOffsetOf(uint64_t page) {
  return static_cast<off_t>(TestGuest::kFileOffset + page * kPageSize);
}

}  // namespace

TestGuest::TestGuest(const std::vector<uint64_t>& region_pages)
    : layout_(MakeLayout(region_pages)), fd_(MakeFile(layout_.bytes())) {}

std::unique_ptr<GuestMemory> TestGuest::OpenMemory() const {
  std::vector<RegionFile> files;
  for (const Region& region : layout_.regions()) {
    files.push_back({fd_.get(), kFileOffset + region.start.value()});
  }
  absl::StatusOr<std::unique_ptr<GuestMemory>> memory =
      GuestMemory::Create(layout_, files);
  POSTCOPY_CHECK(memory.ok());
  return *std::move(memory);
}

void TestGuest::Write(uint64_t page, uint64_t value) {
  POSTCOPY_CHECK(page < pages());
  const std::string bytes = PageOfValue(value);
  POSTCOPY_CHECK(
      ::pwrite(fd_.get(), bytes.data(), bytes.size(), FileOffsetOf(page)) ==
      static_cast<ssize_t>(kPageSize));
}

std::string TestGuest::Page(uint64_t page) const {
  std::string bytes(kPageSize, '\0');
  POSTCOPY_CHECK(
      ::pread(fd_.get(), bytes.data(), bytes.size(), FileOffsetOf(page)) ==
      static_cast<ssize_t>(kPageSize));
  return bytes;
}

void TestGuest::Truncate(ByteCount ram_bytes) {
  POSTCOPY_CHECK(
      ::ftruncate(fd_.get(),
                  static_cast<off_t>(kFileOffset + ram_bytes.value())) == 0);
}

int64_t TestGuest::AllocatedBlocks() const {
  struct stat info;
  POSTCOPY_CHECK(::fstat(fd_.get(), &info) == 0);
  return info.st_blocks;
}

std::string PageOfValue(uint64_t value) {
  std::string bytes(kPageSize, '\0');
  for (uint64_t at = 0; at < kPageSize; at += sizeof(value)) {
    std::memcpy(bytes.data() + at, &value, sizeof(value));
  }
  return bytes;
}

std::string PageInRun(absl::string_view data, uint64_t i) {
  if (data.empty()) return std::string(kPageSize, '\0');
  return std::string(data.substr(i * kPageSize, kPageSize));
}

}  // namespace postcopy
