#include "pageserver/guest_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "pageserver/test_guest.h"

namespace postcopy {
namespace {

using absl::StatusCode;

PageRun PagesAt(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// Reads `run` into `bytes`, one page to an element.
absl::Status ReadPages(const GuestMemory& memory, PageRun run,
                       std::vector<std::string>* bytes) {
  std::string all(run.count.value() * kPageSize, 'x');
  const absl::Status status = memory.Read(
      run, absl::MakeSpan(reinterpret_cast<uint8_t*>(all.data()), all.size()));
  bytes->clear();
  for (uint64_t i = 0; i < run.count.value(); ++i) {
    bytes->push_back(PageInRun(all, i));
  }
  return status;
}

void ExpectPages(const GuestMemory& memory, PageRun run,
                 const std::vector<uint64_t>& values) {
  std::vector<std::string> pages;
  const absl::Status status = ReadPages(memory, run, &pages);
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_TRUE(pages[i] == PageOfValue(values[i])) << "page " << i;
  }
}

std::unique_ptr<GuestMemory> Open(const RamLayout& layout,
                                  const std::vector<RegionFile>& files) {
  absl::StatusOr<std::unique_ptr<GuestMemory>> memory =
      GuestMemory::Create(layout, files);
  EXPECT_TRUE(memory.ok()) << memory.status();
  return *std::move(memory);
}

TEST(GuestMemoryTest, ReadsAcrossRegionsOfOneFile) {
  TestGuest guest({2, 3});
  for (uint64_t page = 0; page < 5; ++page) guest.Write(page, 100 + page);
  const auto memory = guest.OpenMemory();
  ExpectPages(*memory, PagesAt(0, 5), {100, 101, 102, 103, 104});
  ExpectPages(*memory, PagesAt(1, 2), {101, 102});
  ExpectPages(*memory, PagesAt(4, 1), {104});
}

TEST(GuestMemoryTest, WhatIsKeptGoesWithIt) {
  TestGuest guest({2});
  auto memory = guest.OpenMemory();
  auto held = std::make_shared<int>();
  const std::weak_ptr<int> seen = held;
  memory->Keep(std::move(held));
  EXPECT_FALSE(seen.expired());
  memory.reset();
  EXPECT_TRUE(seen.expired());
}

// What lies first in RAM need not lie first in the file.
TEST(GuestMemoryTest, RegionsMayLieInAFileInAnyOrder) {
  TestGuest file({5});
  for (uint64_t page = 0; page < 5; ++page) file.Write(page, 100 + page);
  const RamLayout layout = TestGuest({2, 3}).layout();
  const auto memory =
      Open(layout, {{file.fd(), TestGuest::kFileOffset + 3 * kPageSize},
                    {file.fd(), TestGuest::kFileOffset}});
  ExpectPages(*memory, PagesAt(0, 5), {103, 104, 100, 101, 102});
}

TEST(GuestMemoryTest, ReadsAcrossFiles) {
  TestGuest low({2});
  TestGuest high({3});
  low.Write(1, 11);
  high.Write(0, 20);
  high.Write(2, 22);
  const RamLayout layout = TestGuest({2, 3}).layout();
  const auto memory = Open(layout, {{low.fd(), TestGuest::kFileOffset},
                                    {high.fd(), TestGuest::kFileOffset}});
  ExpectPages(*memory, PagesAt(0, 5), {0, 11, 20, 0, 22});
  EXPECT_EQ(*memory->NextData(PageIndex(0), PageIndex(5)), PageIndex(1));
  EXPECT_EQ(*memory->NextData(PageIndex(3), PageIndex(5)), PageIndex(4));
}

// Two regions of one file are counted once.
TEST(GuestMemoryTest, CountsWhatIsAllocated) {
  TestGuest guest({3, 5});
  EXPECT_EQ(guest.OpenMemory()->Allocated(), ByteCount(0));
  guest.Write(1, 7);
  guest.Write(4, 7);
  EXPECT_EQ(guest.OpenMemory()->Allocated(), BytesIn(PageCount(2)));
}

TEST(GuestMemoryTest, NextDataSkipsHoles) {
  TestGuest guest({4, 4, 4});
  guest.Write(2, 1);
  guest.Write(9, 1);
  const auto memory = guest.OpenMemory();
  const auto next = [&](uint64_t from, uint64_t end) {
    return memory->NextData(PageIndex(from), PageIndex(end))->value();
  };
  EXPECT_EQ(next(0, 12), 2u);
  EXPECT_EQ(next(2, 12), 2u);
  // Over a region that is all hole.
  EXPECT_EQ(next(3, 12), 9u);
  // Data at or past the end is not data of the range.
  EXPECT_EQ(next(3, 9), 9u);
  EXPECT_EQ(next(0, 2), 2u);
  EXPECT_EQ(next(3, 5), 5u);
  // A hole up to the end of the file.
  EXPECT_EQ(next(10, 12), 12u);
  // Nothing to look at.
  EXPECT_EQ(next(2, 2), 2u);
  EXPECT_EQ(next(12, 12), 12u);
}

// A zero page that the guest has written is memory already.
TEST(GuestMemoryTest, AWrittenZeroPageIsData) {
  TestGuest guest({4});
  guest.Write(1, 0);
  const auto memory = guest.OpenMemory();
  EXPECT_EQ(*memory->NextData(PageIndex(0), PageIndex(4)), PageIndex(1));
}

// Migrating a sparse guest must not make it a full one.
TEST(GuestMemoryTest, HolesStayHoles) {
  TestGuest guest({64, 64});
  guest.Write(70, 7);
  const auto memory = guest.OpenMemory();
  const int64_t before = guest.AllocatedBlocks();
  EXPECT_EQ(*memory->NextData(PageIndex(0), PageIndex(128)), PageIndex(70));
  std::vector<std::string> pages;
  ASSERT_TRUE(ReadPages(*memory, PagesAt(0, 128), &pages).ok());
  EXPECT_TRUE(pages[0] == PageOfValue(0));
  EXPECT_TRUE(pages[70] == PageOfValue(7));
  EXPECT_EQ(guest.AllocatedBlocks(), before);
}

TEST(GuestMemoryTest, TruncatedFileIsDataLoss) {
  TestGuest guest({2, 2});
  for (uint64_t page = 0; page < 4; ++page) guest.Write(page, 1);
  const auto memory = guest.OpenMemory();
  guest.Truncate(ByteCount(3 * kPageSize + 100));
  std::vector<std::string> pages;
  EXPECT_TRUE(ReadPages(*memory, PagesAt(0, 3), &pages).ok());
  const absl::Status status = ReadPages(*memory, PagesAt(2, 2), &pages);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_EQ(status.message(),
            "the file of region \"r1\" ends at byte 24676, inside the region: "
            "the VMM must not truncate guest RAM");
}

// What is gone must not pass for a hole: it would arrive as zeros.
TEST(GuestMemoryTest, ATruncatedTailIsNoHole) {
  TestGuest guest({2, 2});
  const auto memory = guest.OpenMemory();
  guest.Truncate(ByteCount(3 * kPageSize));
  EXPECT_EQ(*memory->NextData(PageIndex(0), PageIndex(3)), PageIndex(3));
  for (uint64_t from : {2, 3}) {
    const absl::Status status =
        memory->NextData(PageIndex(from), PageIndex(4)).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_EQ(status.message(),
              "the file of region \"r1\" ends at byte 24576, inside the "
              "region: the VMM must not truncate guest RAM");
  }
}

TEST(GuestMemoryTest, OutsideTheLayoutIsOutOfRange) {
  TestGuest guest({2, 2});
  const auto memory = guest.OpenMemory();
  std::vector<std::string> pages;
  EXPECT_TRUE(ReadPages(*memory, PagesAt(3, 1), &pages).ok());
  for (PageRun run :
       {PagesAt(3, 2), PagesAt(4, 1), PagesAt(1, 0), PagesAt(UINT64_MAX, 1)}) {
    EXPECT_EQ(ReadPages(*memory, run, &pages).code(), StatusCode::kOutOfRange)
        << run.first << " " << run.count;
  }
}

TEST(GuestMemoryTest, OutlivesTheDescriptorItWasGiven) {
  auto guest = std::make_unique<TestGuest>(std::vector<uint64_t>{1});
  guest->Write(0, 5);
  const auto memory = guest->OpenMemory();
  guest.reset();
  ExpectPages(*memory, PagesAt(0, 1), {5});
}

TEST(GuestMemoryTest, ADescriptorThatIsNotOneIsRefused) {
  const absl::Status status =
      GuestMemory::Create(TestGuest({1}).layout(), {RegionFile{-1, 0}})
          .status();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
}

// An I/O error is none of the guest's: the message names the region.
TEST(GuestMemoryTest, UnreadableFileIsInternal) {
  const UniqueFd directory(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(directory.valid());
  const auto memory = Open(TestGuest({1}).layout(), {{directory.get(), 0}});
  std::vector<std::string> pages;
  const absl::Status status = ReadPages(*memory, PagesAt(0, 1), &pages);
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(status.message(),
            "cannot read region \"r0\" at file offset 0: Is a directory");
}

// False where the kernel does not tell what is in memory.
bool KernelTells(int fd) {
  const uint64_t range[2] = {0, kPageSize};
  uint64_t stat[5] = {};
  return ::syscall(451, fd, range, stat, 0) == 0;
}

TEST(GuestMemoryMayWaitTest, WhatIsInMemoryAndHolesOfItDoNot) {
  TestGuest guest({2, 70});
  for (uint64_t page = 0; page < 10; ++page) guest.Write(page, 1);
  const auto memory = guest.OpenMemory();
  EXPECT_FALSE(memory->MayWait(PagesAt(0, 72)));
  EXPECT_FALSE(memory->MayWait(PagesAt(20, 1)));
  EXPECT_EQ(guest.AllocatedBlocks(), 80);
}

TEST(GuestMemoryMayWaitTest, WhatLiesOutsideDoesNot) {
  TestGuest guest({2});
  const auto memory = guest.OpenMemory();
  EXPECT_FALSE(memory->MayWait(PagesAt(2, 1)));
  EXPECT_FALSE(memory->MayWait(PagesAt(0, 0)));
  EXPECT_FALSE(memory->MayWait(PagesAt(UINT64_MAX / kPageSize, 64)));
}

TEST(GuestMemoryMayWaitTest, AFileThatNobodyHasReadMayWait) {
  // Halves that share no folio of the page cache, however large.
  constexpr uint64_t kHalf = 2048;
  const std::string path = testing::TempDir() + "/cold.mem";
  const UniqueFd file(
      ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  ASSERT_TRUE(file.valid());
  const std::string bytes(2 * kHalf * kPageSize, 'x');
  ASSERT_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), 0),
            static_cast<ssize_t>(bytes.size()));
  ::unlink(path.c_str());
  struct statfs info = {};
  ASSERT_EQ(::fstatfs(file.get(), &info), 0);
  if (!KernelTells(file.get())) GTEST_SKIP() << "no cachestat(2)";
  if (info.f_type == TMPFS_MAGIC) GTEST_SKIP() << path << " is on a tmpfs";
  const auto memory =
      Open(*RamLayout::Create({{.name = "ram",
                                .start = RamOffset(0),
                                .length = ByteCount(bytes.size())}}),
           {{.fd = file.get(), .offset = 0}});
  EXPECT_FALSE(memory->MayWait(PagesAt(0, 2 * kHalf)));
  ASSERT_EQ(::fsync(file.get()), 0);
  ASSERT_EQ(::posix_fadvise(file.get(), kHalf * kPageSize, kHalf * kPageSize,
                            POSIX_FADV_DONTNEED),
            0);
  const bool dropped = memory->MayWait(PagesAt(2 * kHalf - 1, 1));
  if (!dropped) GTEST_SKIP() << "the kernel has kept the pages";
  EXPECT_TRUE(memory->MayWait(PagesAt(0, 2 * kHalf)));
  EXPECT_FALSE(memory->MayWait(PagesAt(0, kHalf)));
  std::vector<std::string> pages;
  const PageRun last = PagesAt(2 * kHalf - 4, 4);
  ASSERT_TRUE(ReadPages(*memory, last, &pages).ok());
  EXPECT_FALSE(memory->MayWait(last));
}

TEST(GuestMemoryMayWaitTest, ASwappedPageMayWaitAndAHoleMayNot) {
  TestGuest guest({64});
  guest.Write(0, 4711);
  guest.Write(63, 4712);
  if (!KernelTells(guest.fd())) GTEST_SKIP() << "no cachestat(2)";
  const auto memory = guest.OpenMemory();
  void* const mapped =
      ::mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED, guest.fd(),
             static_cast<off_t>(TestGuest::kFileOffset));
  ASSERT_NE(mapped, MAP_FAILED);
  EXPECT_EQ(*static_cast<const volatile uint64_t*>(mapped), 4711u);
  ::madvise(mapped, kPageSize, MADV_PAGEOUT);
  ::munmap(mapped, kPageSize);
  if (!memory->MayWait(PagesAt(0, 1))) {
    GTEST_SKIP() << "the kernel has not swapped the page out: is there swap?";
  }
  EXPECT_TRUE(memory->MayWait(PagesAt(0, 64)));
  EXPECT_FALSE(memory->MayWait(PagesAt(1, 63)));
  ExpectPages(*memory, PagesAt(0, 1), {4711});
  EXPECT_FALSE(memory->MayWait(PagesAt(0, 64)));
}

TEST(GuestMemoryMayWaitTest, HugePagesDoNot) {
  const UniqueFd huge(::memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB));
  if (!huge.valid() || ::ftruncate(huge.get(), 2 << 20) != 0) {
    GTEST_SKIP() << "no hugetlbfs";
  }
  const auto memory = Open(*RamLayout::Create({{.name = "ram",
                                                .start = RamOffset(0),
                                                .length = ByteCount(2 << 20)}}),
                           {{.fd = huge.get(), .offset = 0}});
  EXPECT_FALSE(memory->MayWait(PagesAt(0, 512)));
}

// --- Memory that is no file.

TEST(GuestMemoryOfProcessTest, ReadsPrivateMemory) {
  constexpr size_t kPages = 8;
  void* const mapped =
      ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  auto* const bytes = static_cast<uint8_t*>(mapped);
  for (size_t i = 0; i < kPages; ++i) {
    bytes[i * kPageSize + 17] = static_cast<uint8_t>(i + 1);
  }
  const UniqueFd mem(::open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(mem.valid());
  const auto memory = Open(
      *RamLayout::Create({{.name = "ram",
                           .start = RamOffset(0),
                           .length = ByteCount(kPages * kPageSize)}}),
      {{.fd = mem.get(),
        .offset = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(mapped))}});
  std::vector<uint8_t> read(kPages * kPageSize);
  ASSERT_TRUE(memory->Read(PagesAt(0, kPages), absl::MakeSpan(read)).ok());
  EXPECT_EQ(std::memcmp(read.data(), bytes, read.size()), 0);
  // It tells of no holes, and how much is there cannot be asked.
  EXPECT_EQ(*memory->NextData(PageIndex(3), PageIndex(8)), PageIndex(3));
  EXPECT_FALSE(memory->MayWait(PagesAt(0, kPages)));
  EXPECT_EQ(memory->Allocated(), ByteCount(kPages * kPageSize));
  ::munmap(mapped, kPages * kPageSize);
  const absl::Status gone =
      memory->Read(PagesAt(0, 1), absl::MakeSpan(read).subspan(0, kPageSize));
  EXPECT_EQ(gone.code(), absl::StatusCode::kInternal) << gone;
}

TEST(GuestMemoryOfProcessTest, AProcessThatHasEndedIsALoss) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char wait;
    ::close(ends[1]);
    ::_exit(static_cast<int>(::read(ends[0], &wait, 1)));
  }
  ::close(ends[0]);
  const UniqueFd mem(::open(absl::StrCat("/proc/", child, "/mem").c_str(),
                            O_RDONLY | O_CLOEXEC));
  ::close(ends[1]);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  if (!mem.valid()) GTEST_SKIP() << "no permission to read a child";
  const auto memory =
      Open(*RamLayout::Create({{.name = "ram",
                                .start = RamOffset(0),
                                .length = ByteCount(kPageSize)}}),
           {{.fd = mem.get(), .offset = kPageSize}});
  std::vector<uint8_t> read(kPageSize);
  const absl::Status gone = memory->Read(PagesAt(0, 1), absl::MakeSpan(read));
  EXPECT_EQ(gone.code(), absl::StatusCode::kDataLoss) << gone;
  EXPECT_NE(gone.message().find("the VMM has ended"), absl::string_view::npos);
}

TEST(GuestMemoryHugeTest, ReadsHugePages) {
  const UniqueFd huge(::memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB));
  if (!huge.valid() || ::ftruncate(huge.get(), 4 << 20) != 0) {
    GTEST_SKIP() << "no hugetlbfs";
  }
  void* const mapped = ::mmap(nullptr, 2 << 20, PROT_READ | PROT_WRITE,
                              MAP_SHARED, huge.get(), 2 << 20);
  if (mapped == MAP_FAILED) GTEST_SKIP() << "no huge page is to be had";
  static_cast<uint8_t*>(mapped)[kPageSize] = 7;
  const auto memory = Open(*RamLayout::Create({{.name = "ram",
                                                .start = RamOffset(0),
                                                .length = ByteCount(4 << 20)}}),
                           {{.fd = huge.get(), .offset = 0}});
  std::vector<uint8_t> read(2 * kPageSize);
  ASSERT_TRUE(memory->Read(PagesAt(512, 2), absl::MakeSpan(read)).ok());
  EXPECT_EQ(read[0], 0);
  EXPECT_EQ(read[kPageSize], 7);
  // A hole reads as zeros, and stays one.
  ASSERT_TRUE(memory->Read(PagesAt(0, 2), absl::MakeSpan(read)).ok());
  EXPECT_EQ(read[kPageSize], 0);
  EXPECT_EQ(memory->Allocated(), ByteCount(2 << 20));
  ::munmap(mapped, 2 << 20);
}

}  // namespace
}  // namespace postcopy
