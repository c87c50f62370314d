#include "uffd/working_set.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "dirtytrack/page_checksum.h"
#include "dirtytrack/ram_layout.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr uint64_t kMostPages = kMaxRamBytes.value() / kPageSize;

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

absl::Span<const uint8_t> AsBytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

WorkingSet Small() {
  return {.pages = PageCount(262144),
          .snapshot_bytes = ByteCount(uint64_t{1} << 30),
          .runs = {Pages(5, 1), Pages(0x100, 2)}};
}

// With a checksum that fits.
std::string Mended(std::string bytes) {
  std::string covered = bytes.substr(0, 12) + bytes.substr(16);
  const uint32_t crc = Crc32c(AsBytes(covered));
  std::memcpy(bytes.data() + 12, &crc, sizeof(crc));
  return bytes;
}

// Small() with `value` at `offset`, and a checksum that fits.
template <typename T>
absl::Status DecodedWith(size_t offset, T value) {
  std::string bytes = EncodeWorkingSet(Small());
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
  return DecodeWorkingSet(AsBytes(Mended(bytes))).status();
}

TEST(WorkingSetTest, IsWhatTheHeaderSays) {
  const std::string bytes = EncodeWorkingSet(Small());
  ASSERT_EQ(bytes.size(), 80u);
  EXPECT_EQ(bytes.substr(0, 8), "PCWORKST");
  const auto at = [&](size_t offset) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + offset, sizeof(value));
    return value;
  };
  EXPECT_EQ(at(8) & UINT32_MAX, 1u);
  EXPECT_EQ(at(16), 4096u);
  EXPECT_EQ(at(24), 262144u);
  EXPECT_EQ(at(32), uint64_t{1} << 30);
  EXPECT_EQ(at(40), 2u);
  EXPECT_EQ(at(48), 5u);
  EXPECT_EQ(at(56), 1u);
  EXPECT_EQ(at(64), 0x100u);
  EXPECT_EQ(at(72), 2u);
  EXPECT_EQ(bytes, Mended(bytes));
}

TEST(WorkingSetTest, ComesBackAsItWas) {
  WorkingSet set = Small();
  for (const size_t runs : {size_t{1}, kWorkingSetRunsMax}) {
    set.runs.assign(runs, Pages(262143, 1));
    const auto read = DecodeWorkingSet(AsBytes(EncodeWorkingSet(set)));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->pages, set.pages);
    EXPECT_EQ(read->snapshot_bytes, set.snapshot_bytes);
    EXPECT_EQ(read->runs, set.runs);
  }
}

TEST(WorkingSetTest, NoRunsAndOneTooManyAreRefused) {
  WorkingSet set = Small();
  for (const size_t runs : {size_t{0}, kWorkingSetRunsMax + 1}) {
    set.runs.assign(runs, Pages(0, 1));
    const absl::Status status =
        DecodeWorkingSet(AsBytes(EncodeWorkingSet(set))).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  }
}

TEST(WorkingSetTest, EveryLengthButItsOwnIsRefused) {
  const std::string bytes = EncodeWorkingSet(Small());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(DecodeWorkingSet(AsBytes(bytes.substr(0, size))).ok()) << size;
  }
  EXPECT_FALSE(DecodeWorkingSet(AsBytes(bytes + 'x')).ok());
  EXPECT_FALSE(
      DecodeWorkingSet(AsBytes(Mended(bytes + std::string(16, '\0')))).ok());
}

TEST(WorkingSetTest, EveryDamagedBitIsSeen) {
  const std::string bytes = EncodeWorkingSet(Small());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(DecodeWorkingSet(AsBytes(damaged)).ok()) << bit;
  }
}

TEST(WorkingSetTest, WhatIsForeignIsToldApart) {
  EXPECT_TRUE(absl::IsInvalidArgument(DecodedWith<uint64_t>(0, 1)));
  EXPECT_TRUE(absl::IsFailedPrecondition(DecodedWith<uint32_t>(8, 0)));
  EXPECT_TRUE(absl::IsFailedPrecondition(DecodedWith<uint32_t>(8, 2)));
  EXPECT_TRUE(absl::IsFailedPrecondition(DecodedWith<uint64_t>(16, 16384)));
}

TEST(WorkingSetTest, TheVmHasPagesAndNotTooMany) {
  EXPECT_TRUE(DecodedWith<uint64_t>(24, kMostPages).ok());
  EXPECT_TRUE(
      absl::IsInvalidArgument(DecodedWith<uint64_t>(24, kMostPages + 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodedWith<uint64_t>(24, UINT64_MAX)));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodedWith<uint64_t>(24, 0)));
  // The last run ends at 0x102.
  EXPECT_TRUE(DecodedWith<uint64_t>(24, 0x102).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(DecodedWith<uint64_t>(24, 0x101)));
}

TEST(WorkingSetTest, RunsLieInTheVm) {
  EXPECT_TRUE(DecodedWith<uint64_t>(48, 262143).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(DecodedWith<uint64_t>(48, 262144)));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodedWith<uint64_t>(48, UINT64_MAX)));
  EXPECT_TRUE(DecodedWith<uint64_t>(56, 262139).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(DecodedWith<uint64_t>(56, 262140)));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodedWith<uint64_t>(56, UINT64_MAX)));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodedWith<uint64_t>(56, 0)));
}

class WorkingSetFileTest : public testing::Test {
 protected:
  WorkingSetFileTest() { ::mkdir(folder_.c_str(), 0700); }
  ~WorkingSetFileTest() override {
    ::unlink(path_.c_str());
    ::rmdir(path_.c_str());
    EXPECT_EQ(::rmdir(folder_.c_str()), 0) << "something was left behind";
  }
  void Put(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
  }
  std::string Get() {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const std::string folder_ =
      testing::TempDir() + "/working_set." + std::to_string(::getpid());
  const std::string path_ = folder_ + "/file";
};

TEST_F(WorkingSetFileTest, IsWrittenAndRead) {
  EXPECT_TRUE(absl::IsNotFound(ReadWorkingSet(path_).status()));
  EXPECT_TRUE(CheckWorkingSetFolder(path_).ok());
  ASSERT_TRUE(WriteWorkingSet(path_, Small()).ok());
  const auto read = ReadWorkingSet(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->runs, Small().runs);
  WorkingSet other = Small();
  other.runs.pop_back();
  ASSERT_TRUE(WriteWorkingSet(path_, other).ok());
  EXPECT_EQ(ReadWorkingSet(path_)->runs, other.runs);
}

TEST_F(WorkingSetFileTest, ADamagedFileIsAnErrorThatSaysWhatToDo) {
  std::string bytes = EncodeWorkingSet(Small());
  bytes[50] ^= 1;
  Put(bytes);
  const absl::Status status = ReadWorkingSet(path_).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_NE(status.message().find(path_), std::string::npos) << status;
  EXPECT_NE(status.message().find("remove this one"), std::string::npos)
      << status;
}

TEST_F(WorkingSetFileTest, TheLargestIsReadAndOneByteMoreIsNot) {
  WorkingSet set = Small();
  set.runs.assign(kWorkingSetRunsMax, Pages(0, 1));
  const std::string bytes = EncodeWorkingSet(set);
  ASSERT_EQ(bytes.size(), kWorkingSetFileBytesMax);
  Put(bytes);
  EXPECT_TRUE(ReadWorkingSet(path_).ok());
  Put(bytes + 'x');
  const absl::Status status = ReadWorkingSet(path_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

TEST_F(WorkingSetFileTest, WhatIsNoFileIsRefused) {
  ASSERT_EQ(::mkdir(path_.c_str(), 0700), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadWorkingSet(path_).status()));
  // Nor can a file take its place; what was begun is removed.
  EXPECT_FALSE(WriteWorkingSet(path_, Small()).ok());
  ASSERT_EQ(::rmdir(path_.c_str()), 0);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadWorkingSet(path_).status()));
}

TEST_F(WorkingSetFileTest, AFolderThatIsNotThereIsTold) {
  const std::string path = folder_ + "/no/file";
  EXPECT_TRUE(absl::IsNotFound(CheckWorkingSetFolder(path)));
  EXPECT_TRUE(absl::IsNotFound(WriteWorkingSet(path, Small())));
}

TEST_F(WorkingSetFileTest, AFailedWriteLeavesTheOldOne) {
  ASSERT_TRUE(WriteWorkingSet(path_, Small()).ok());
  const std::string before = Get();
  // A name that is as long as one may be has no room for another beside it.
  const std::string long_path = folder_ + "/" + std::string(255, 'x');
  EXPECT_FALSE(WriteWorkingSet(long_path, Small()).ok());
  EXPECT_EQ(Get(), before);
}

}  // namespace
}  // namespace postcopy
