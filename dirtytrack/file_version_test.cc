#include "dirtytrack/file_version.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "dirtytrack/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

class FileVersionTest : public ::testing::Test {
 protected:
  FileVersionTest()
      : path_(::testing::TempDir() + "/file_version_test"),
        fd_(::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC,
                   0600)) {
    EXPECT_EQ(::write(fd_.get(), "abcd", 4), 4);
    // Long ago, so that any write is at another time.
    const timespec times[] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    EXPECT_EQ(::futimens(fd_.get(), times), 0);
    then_ = *VersionOf(fd_.get());
  }

  absl::Status Check() const {
    return CheckVersion(fd_.get(), then_, "the file");
  }

  const std::string path_;
  const UniqueFd fd_;
  FileVersion then_;
};

TEST_F(FileVersionTest, SaysWhatTheInodeDoes) {
  EXPECT_EQ(then_.size, ByteCount(4));
  EXPECT_EQ(then_.written_s, 1000);
  EXPECT_EQ(then_.written_ns, 0);
  EXPECT_TRUE(Check().ok());
}

TEST_F(FileVersionTest, OneByteInPlaceIsAnotherVersion) {
  EXPECT_EQ(::pwrite(fd_.get(), "x", 1, 2), 1);
  EXPECT_TRUE(absl::IsDataLoss(Check()));
  EXPECT_THAT(std::string(Check().message()),
              HasSubstr("the file has been written to"));
}

TEST_F(FileVersionTest, AShorterFileIsToldAsSuch) {
  EXPECT_EQ(::ftruncate(fd_.get(), 3), 0);
  EXPECT_TRUE(absl::IsDataLoss(Check()));
  EXPECT_THAT(std::string(Check().message()),
              HasSubstr("truncated: it has 3 bytes, and had 4"));
}

// It is read from as before by whoever has it open.
TEST_F(FileVersionTest, OneThatIsRenamedReplacedOrReadIsTheSame) {
  const std::string other = path_ + ".other";
  ASSERT_EQ(::rename(path_.c_str(), other.c_str()), 0);
  ASSERT_EQ(::chmod(other.c_str(), 0400), 0);
  ASSERT_EQ(::unlink(other.c_str()), 0);
  char byte = 0;
  EXPECT_EQ(::pread(fd_.get(), &byte, 1, 0), 1);
  EXPECT_TRUE(Check().ok()) << Check();
}

TEST_F(FileVersionTest, WhatCannotBeAskedIsNoLoss) {
  EXPECT_TRUE(absl::IsInternal(VersionOf(-1).status()));
  EXPECT_TRUE(absl::IsInternal(CheckVersion(-1, then_, "the file")));
}

}  // namespace
}  // namespace postcopy
