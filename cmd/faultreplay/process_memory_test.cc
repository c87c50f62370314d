#include "cmd/faultreplay/process_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dirtytrack/memfd.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

Mapping Anonymous(uint64_t begin, uint64_t pages) {
  return {
      .begin = begin, .end = begin + pages * kPageSize, .permissions = "rw-p"};
}

TEST(ParseMappingsTest, TakesWhatTheKernelWrites) {
  const auto mappings = ParseMappings(
      "55e0c0a00000-55e0c0a21000 rw-p 00000000 00:00 0                         "
      " "
      "[heap]\n"
      "7f0000000000-7f0000001000 r-xp 00001000 08:01 123456      /usr/lib/a b\n"
      "7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \n");
  ASSERT_TRUE(mappings.ok()) << mappings.status();
  ASSERT_EQ(mappings->size(), 3u);
  EXPECT_EQ((*mappings)[0].begin, 0x55e0c0a00000u);
  EXPECT_EQ((*mappings)[0].end, 0x55e0c0a21000u);
  EXPECT_EQ((*mappings)[0].name, "[heap]");
  EXPECT_EQ((*mappings)[1].inode, 123456u);
  EXPECT_EQ((*mappings)[1].name, "/usr/lib/a b");
  EXPECT_EQ((*mappings)[2].name, "");
  EXPECT_EQ((*mappings)[2].permissions, "rw-p");
}

TEST(ParseMappingsTest, RefusesWhatItDoesNot) {
  for (const char* text :
       {"x", "1000-2000 rw-p 0 00:00", "1000 rw-p 0 00:00 0",
        "2000-1000 rw-p 0 00:00 0", "1000-2000 rw 0 00:00 0",
        "1000-2000 rw-p 0 00:00 x", "10z0-2000 rw-p 0 00:00 0"}) {
    EXPECT_FALSE(ParseMappings(text).ok()) << text;
  }
  EXPECT_TRUE(ParseMappings("").ok());
}

TEST(ParseMappingsTest, ReadsThisProcess) {
  const auto mappings = ReadMappings(::getpid());
  ASSERT_TRUE(mappings.ok()) << mappings.status();
  EXPECT_GT(mappings->size(), 5u);
  EXPECT_FALSE(ReadMappings(0).ok());
}

TEST(ChooseRecordedTest, TakesPrivateAnonymousWritableMemory) {
  std::vector<Mapping> all(8, Anonymous(0x1000, 16));
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = Anonymous(0x100000 * (i + 1), 16);
  }
  all[1].permissions = "rw-s";
  all[2].permissions = "rwxp";
  all[3].permissions = "r--p";
  all[4].inode = 7;
  all[5].name = "[stack]";
  all[6].name = "[heap]";
  all[7].name = "[anon:arena]";
  const std::vector<Mapping> chosen = ChooseRecorded(all, ByteCount(0), 64);
  EXPECT_EQ(chosen, (std::vector<Mapping>{all[0], all[6], all[7]}));
}

TEST(ChooseRecordedTest, TakesTheLargestByAddress) {
  const Mapping small = Anonymous(0x10000, 1), large = Anonymous(0x900000, 9),
                middle = Anonymous(0x500000, 5);
  const std::vector<Mapping> all = {large, small, middle};
  EXPECT_EQ(ChooseRecorded(all, ByteCount(0), 3),
            (std::vector<Mapping>{small, middle, large}));
  EXPECT_EQ(ChooseRecorded(all, ByteCount(0), 2),
            (std::vector<Mapping>{middle, large}));
  EXPECT_EQ(ChooseRecorded(all, ByteCount(9 * kPageSize), 3),
            (std::vector<Mapping>{large}));
  EXPECT_EQ(ChooseRecorded(all, ByteCount(9 * kPageSize + 1), 3),
            (std::vector<Mapping>{}));
}

TEST(ProcessMemoryTest, SavesWhatHasContentAndLeavesTheRestAHole) {
  constexpr size_t kPages = 600;
  constexpr size_t kBytes = kPages * kPageSize;
  auto* const memory =
      static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  ::madvise(memory, kBytes, MADV_NOHUGEPAGE);
  memory[3 * kPageSize] = 'a';
  memory[599 * kPageSize + 1] = 'b';
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const auto process = ProcessMemory::Open(::getpid());
  ASSERT_TRUE(process.ok()) << process.status();
  const UniqueFd file = *CreateMemfd("snapshot", ByteCount(kPageSize), 0);
  const auto saved =
      process->Save({.begin = begin, .end = begin + kBytes}, file.get(),
                    /*offset=*/kPageSize);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ(*saved, PageCount(2));
  EXPECT_EQ(::lseek(file.get(), 0, SEEK_END),
            static_cast<off_t>(kBytes + kPageSize));
  EXPECT_EQ(::lseek(file.get(), 0, SEEK_DATA),
            static_cast<off_t>(4 * kPageSize));
  char read = 0;
  ASSERT_EQ(::pread(file.get(), &read, 1, 600 * kPageSize + 1), 1);
  EXPECT_EQ(read, 'b');
  EXPECT_TRUE(process->Write(begin, "z", 1).ok());
  EXPECT_EQ(memory[0], 'z');
  ::munmap(memory, kBytes);
  EXPECT_FALSE(process->Read(begin, &read, 1).ok());
  EXPECT_FALSE(process->Write(begin, &read, 1).ok());
}

TEST(ProcessMemoryTest, AProcessThatIsNoneIsTold) {
  EXPECT_FALSE(ProcessMemory::Open(0).ok());
}

}  // namespace
}  // namespace postcopy
