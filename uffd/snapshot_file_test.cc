#include "uffd/snapshot_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr ByteCount kPage{kPageSize};

absl::StatusCode CodeOf(const std::string& path) {
  return SnapshotFile::Open(path, SnapshotAccess::kBuffered).status().code();
}

// A directory on the disk. Short: it has a socket's path.
class SnapshotFileTest : public testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/snapshot.XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    directory_ = path;
  }
  void TearDown() override {
    for (const std::string& path : made_) ::unlink(path.c_str());
    ::rmdir(directory_.c_str());
  }

  std::string Name(const std::string& name) {
    made_.push_back(directory_ + "/" + name);
    return made_.back();
  }

  // Page 2 of 8 is data, all else a hole.
  std::string Sparse() {
    const std::string path = Name("sparse");
    const UniqueFd fd(::open(path.c_str(), O_CREAT | O_RDWR, 0600));
    EXPECT_EQ(::ftruncate(fd.get(), 8 * kPageSize), 0);
    const std::vector<uint8_t> ones(kPageSize, 1);
    EXPECT_EQ(::pwrite(fd.get(), ones.data(), kPageSize, 2 * kPageSize),
              static_cast<ssize_t>(kPageSize));
    return path;
  }

  static bool IsHole(SnapshotFile& file, uint64_t page, uint64_t pages) {
    const absl::StatusOr<bool> hole =
        file.IsHole(page * kPageSize, ByteCount(pages * kPageSize));
    EXPECT_TRUE(hole.ok()) << hole.status();
    return *hole;
  }

  std::string directory_;
  std::vector<std::string> made_;
};

TEST_F(SnapshotFileTest, OpensARegularFile) {
  const std::string path = Sparse();
  const absl::StatusOr<SnapshotFile> file =
      SnapshotFile::Open(path, SnapshotAccess::kBuffered);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->path(), path);
  EXPECT_EQ(file->size(), ByteCount(8 * kPageSize));
  EXPECT_LT(file->direct_fd(), 0);
  const int flags = ::fcntl(file->fd(), F_GETFL);
  EXPECT_EQ(flags & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(flags & O_NONBLOCK, 0);
}

TEST_F(SnapshotFileTest, RefusesWhatIsNoRegularFile) {
  const std::string fifo = Name("fifo");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_EQ(CodeOf(fifo), absl::StatusCode::kInvalidArgument);

  sockaddr_un address = {.sun_family = AF_UNIX};
  std::strncpy(address.sun_path, Name("socket").c_str(),
               sizeof(address.sun_path) - 1);
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM, 0));
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address),
                   sizeof(address)),
            0);
  EXPECT_EQ(CodeOf(address.sun_path), absl::StatusCode::kInvalidArgument);

  EXPECT_EQ(CodeOf(directory_), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf("/dev/zero"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf(directory_ + "/none"), absl::StatusCode::kNotFound);
  EXPECT_EQ(CodeOf(Sparse() + "/none"), absl::StatusCode::kNotFound);
  EXPECT_EQ(CodeOf(std::string(5000, 'a')), absl::StatusCode::kInvalidArgument);
}

TEST_F(SnapshotFileTest, SaysThatDescriptorsAreExhausted) {
  const std::string path = Sparse();
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const UniqueFd next(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  // 0: not even the first; 1: no second one; 2: none for direct access.
  for (rlim_t free = 0; free < 3; ++free) {
    const rlimit tight = {.rlim_cur = next.get() + 1 + free,
                          .rlim_max = before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
    const absl::Status status =
        SnapshotFile::Open(path, SnapshotAccess::kDirect).status();
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  }
}

TEST_F(SnapshotFileTest, FallsBackWhereThereIsNoDirectAccess) {
  // Regular files, but of a file system without pages on a disk.
  const absl::StatusOr<SnapshotFile> file =
      SnapshotFile::Open("/proc/self/status", SnapshotAccess::kDirect);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_GE(file->fd(), 0);
  EXPECT_LT(file->direct_fd(), 0);
}

TEST_F(SnapshotFileTest, DirectAccessHasADescriptorOfItsOwn) {
  const absl::StatusOr<SnapshotFile> file =
      SnapshotFile::Open(Sparse(), SnapshotAccess::kDirect);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(::fcntl(file->fd(), F_GETFL) & O_DIRECT, 0);
  if (file->direct_fd() < 0) GTEST_SKIP() << "no O_DIRECT on this disk";
  EXPECT_NE(::fcntl(file->direct_fd(), F_GETFL) & O_DIRECT, 0);
}

TEST_F(SnapshotFileTest, TellsHolesFromData) {
  SnapshotFile file = *SnapshotFile::Open(Sparse(), SnapshotAccess::kBuffered);
  if (!IsHole(file, 0, 1)) GTEST_SKIP() << "no holes on this disk";
  EXPECT_TRUE(IsHole(file, 0, 2));
  EXPECT_FALSE(IsHole(file, 0, 3));
  EXPECT_FALSE(IsHole(file, 2, 1));
  EXPECT_FALSE(IsHole(file, 2, 2));
  EXPECT_TRUE(IsHole(file, 3, 5));
  EXPECT_TRUE(IsHole(file, 7, 1));
  EXPECT_TRUE(IsHole(file, 1, 1));
  EXPECT_FALSE(IsHole(file, 1, 2));
}

TEST_F(SnapshotFileTest, WhatWasCutOffIsNoHole) {
  const std::string path = Sparse();
  SnapshotFile file = *SnapshotFile::Open(path, SnapshotAccess::kBuffered);
  if (!IsHole(file, 4, 4)) GTEST_SKIP() << "no holes on this disk";
  ASSERT_EQ(::truncate(path.c_str(), 7 * kPageSize), 0);
  EXPECT_TRUE(IsHole(file, 6, 1));
  EXPECT_EQ(file.IsHole(7 * kPageSize, kPage).status().code(),
            absl::StatusCode::kOutOfRange);
  // Without anything known of before.
  absl::StatusOr<SnapshotFile> other = file.Reopen();
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->size(), ByteCount(8 * kPageSize));
  EXPECT_EQ(other->IsHole(7 * kPageSize, kPage).status().code(),
            absl::StatusCode::kOutOfRange);
}

TEST_F(SnapshotFileTest, ReopensTheFileThatThePathLedTo) {
  const std::string path = Sparse();
  const SnapshotFile file =
      *SnapshotFile::Open(path, SnapshotAccess::kBuffered);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const absl::StatusOr<SnapshotFile> other = file.Reopen();
  ASSERT_TRUE(other.ok()) << other.status();
  uint8_t byte = 0;
  EXPECT_EQ(::pread(other->fd(), &byte, 1, 2 * kPageSize), 1);
  EXPECT_EQ(byte, 1);
  // A file offset of its own.
  ASSERT_EQ(::lseek(file.fd(), 5, SEEK_SET), 5);
  EXPECT_EQ(::lseek(other->fd(), 0, SEEK_CUR), 0);
}

}  // namespace
}  // namespace postcopy
