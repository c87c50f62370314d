#include "dirtytrack/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <string>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

using absl::StatusCode;
using Access = SharedMapping::Access;

UniqueFd MakeMemfd(ByteCount size, int seals) {
  absl::StatusOr<UniqueFd> fd = CreateMemfd("test", size, seals);
  EXPECT_TRUE(fd.ok()) << fd.status();
  return *std::move(fd);
}

SharedMapping MakeMapping(const UniqueFd& fd, ByteCount offset,
                          ByteCount length, Access access) {
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(fd.get(), offset, length, access);
  EXPECT_TRUE(mapping.ok()) << mapping.status();
  return *std::move(mapping);
}

TEST(CreateMemfdTest, HasTheSizeAndTheSeals) {
  const UniqueFd fd = MakeMemfd(ByteCount(8192), F_SEAL_SHRINK | F_SEAL_GROW);
  EXPECT_EQ(*FileSize(fd.get()), ByteCount(8192));
  EXPECT_NE(::ftruncate(fd.get(), 4096), 0);
  EXPECT_NE(::ftruncate(fd.get(), 16384), 0);
  EXPECT_TRUE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC);
  // More seals may follow.
  EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SEAL), 0);
}

TEST(CreateMemfdTest, SizeLimit) {
  EXPECT_TRUE(CreateMemfd("empty", ByteCount(0), 0).ok());
  const absl::Status status =
      CreateMemfd("huge", ByteCount(uint64_t{1} << 63), 0).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "no memfd can have 8388608TiB");
}

TEST(CreateMemfdTest, NameLimit) {
  EXPECT_TRUE(CreateMemfd(std::string(249, 'n'), ByteCount(1), 0).ok());
  for (const std::string& name :
       {std::string(250, 'n'), std::string("a\0b", 3)}) {
    const absl::Status status = CreateMemfd(name, ByteCount(1), 0).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(),
              "a memfd's name has at most 249 bytes and no "
              "NUL");
  }
}

TEST(FileSizeTest, NeedsADescriptor) {
  const absl::Status status = FileSize(-1).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "fstat failed: Bad file descriptor");
}

TEST(RequireSealsTest, ContentWithAllOrMore) {
  const UniqueFd fd = MakeMemfd(ByteCount(4096), F_SEAL_SHRINK | F_SEAL_GROW);
  EXPECT_TRUE(RequireSeals(fd.get(), F_SEAL_SHRINK, "guest RAM").ok());
  EXPECT_TRUE(
      RequireSeals(fd.get(), F_SEAL_SHRINK | F_SEAL_GROW, "guest RAM").ok());
}

TEST(RequireSealsTest, NamesWhatIsMissing) {
  const UniqueFd fd = MakeMemfd(ByteCount(4096), F_SEAL_GROW);
  const absl::Status status =
      RequireSeals(fd.get(), F_SEAL_SHRINK | F_SEAL_GROW, "guest RAM");
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "the memfd of guest RAM lacks F_SEAL_SHRINK, without which a "
            "change of its size could kill the daemon; create it with "
            "memfd_create(MFD_ALLOW_SEALING) and call fcntl(fd, F_ADD_SEALS, "
            "F_SEAL_SHRINK) before passing it on");
  EXPECT_NE(RequireSeals(MakeMemfd(ByteCount(1), 0).get(),
                         F_SEAL_SHRINK | F_SEAL_GROW, "x")
                .message()
                .find("lacks F_SEAL_SHRINK|F_SEAL_GROW,"),
            absl::string_view::npos);
}

TEST(RequireSealsTest, OnlyAMemfdWillDo) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read(ends[0]);
  const UniqueFd write(ends[1]);
  const absl::Status status =
      RequireSeals(read.get(), F_SEAL_SHRINK, "the dirty log");
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "the descriptor of the dirty log is not a memfd; create it with "
            "memfd_create(MFD_ALLOW_SEALING)");
  EXPECT_EQ(RequireSeals(-1, F_SEAL_SHRINK, "x").code(),
            StatusCode::kInvalidArgument);
}

TEST(SharedMappingTest, SeesWhatOthersWrite) {
  UniqueFd fd = MakeMemfd(ByteCount(3 * kPageSize), 0);
  const SharedMapping whole = MakeMapping(
      fd, ByteCount(0), ByteCount(3 * kPageSize), Access::kReadWrite);
  const SharedMapping part =
      MakeMapping(fd, ByteCount(kPageSize), ByteCount(10), Access::kReadOnly);
  fd.Reset();  // mappings do not need it
  whole.data()[kPageSize + 3] = 42;
  EXPECT_EQ(part.data()[3], 42);
  EXPECT_EQ(part.size(), ByteCount(10));
}

TEST(SharedMappingTest, Moves) {
  const UniqueFd fd = MakeMemfd(ByteCount(kPageSize), 0);
  SharedMapping a =
      MakeMapping(fd, ByteCount(0), ByteCount(kPageSize), Access::kReadWrite);
  uint8_t* data = a.data();
  SharedMapping b = std::move(a);
  EXPECT_EQ(b.data(), data);
  SharedMapping c =
      MakeMapping(fd, ByteCount(0), ByteCount(kPageSize), Access::kReadWrite);
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  c.data()[0] = 1;
  c = SharedMapping();
  EXPECT_EQ(c.data(), nullptr);
  EXPECT_EQ(c.size(), ByteCount(0));
}

TEST(SharedMappingTest, RefusesABadRange) {
  const UniqueFd fd = MakeMemfd(ByteCount(2 * kPageSize), 0);
  const auto map = [&](uint64_t offset, uint64_t length) {
    return SharedMapping::Map(fd.get(), ByteCount(offset), ByteCount(length),
                              Access::kReadWrite)
        .status();
  };
  EXPECT_TRUE(map(kPageSize, kPageSize).ok());

  EXPECT_EQ(map(0, 0).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(map(1, kPageSize).message(),
            "cannot map 4KiB at byte 1 of a file: the length must not be 0 "
            "and the offset a multiple of 4096");
  EXPECT_EQ(map(kPageSize, kPageSize + 1).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(map(kPageSize, 2 * kPageSize).message(),
            "cannot map 8KiB at byte 4096 of a file of 8KiB");
  EXPECT_EQ(map(3 * kPageSize, 1).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(map(kPageSize, UINT64_MAX).code(), StatusCode::kOutOfRange);
}

TEST(SharedMappingTest, RefusesWhatTheSealsForbid) {
  const UniqueFd fd = MakeMemfd(ByteCount(kPageSize), F_SEAL_FUTURE_WRITE);
  const absl::Status status =
      SharedMapping::Map(fd.get(), ByteCount(0), ByteCount(kPageSize),
                         Access::kReadWrite)
          .status();
  EXPECT_EQ(status.code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(status.message(), "mmap failed: Operation not permitted");
  EXPECT_TRUE(SharedMapping::Map(fd.get(), ByteCount(0), ByteCount(kPageSize),
                                 Access::kReadOnly)
                  .ok());
}

TEST(DuplicateTest, IsAnotherDescriptorOfTheSameFile) {
  const UniqueFd file = *CreateMemfd("a", ByteCount(kPageSize), 0);
  const absl::StatusOr<UniqueFd> copy = Duplicate(file.get());
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_NE(copy->get(), file.get());
  EXPECT_EQ(FileSize(copy->get())->value(), kPageSize);
  EXPECT_EQ(::fcntl(copy->get(), F_GETFD), FD_CLOEXEC);
}

TEST(DuplicateTest, SaysWhatIsWrong) {
  EXPECT_EQ(Duplicate(-1).status().code(), absl::StatusCode::kInvalidArgument);
  const UniqueFd file = *CreateMemfd("a", ByteCount(kPageSize), 0);
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 3;  // all of them taken
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status status = Duplicate(file.get()).status();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

}  // namespace
}  // namespace postcopy
