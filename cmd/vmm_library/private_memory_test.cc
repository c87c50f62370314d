#include "cmd/vmm_library/private_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "dirtytrack/userfaultfd.h"

namespace postcopy {
namespace {

constexpr ByteCount kLength{64 * kPageSize};

class PrivateMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    auto uffd = CreateUserfaultfd();
    if (!uffd.ok()) GTEST_SKIP() << uffd.status();
    uffd_ = std::move(uffd->fd);
    Map(MAP_PRIVATE | MAP_ANONYMOUS, -1);
  }
  ~PrivateMemoryTest() override {
    // First, so that nobody waits.
    uffd_.Reset();
    if (memory_ != nullptr) ::munmap(memory_, kLength.value());
  }

  void Map(int flags, int fd) {
    if (memory_ != nullptr) ::munmap(memory_, kLength.value());
    void* const memory =
        ::mmap(nullptr, kLength.value(), PROT_READ | PROT_WRITE, flags, fd, 0);
    ASSERT_NE(memory, MAP_FAILED);
    memory_ = static_cast<uint8_t*>(memory);
  }
  absl::Status Empty(int uffd) {
    return EmptyPrivateMemory(uffd, "ram",
                              HostAddress(reinterpret_cast<uintptr_t>(memory_)),
                              kLength);
  }
  absl::Status Empty() { return Empty(uffd_.get()); }

  UniqueFd uffd_;
  uint8_t* memory_ = nullptr;
};

TEST_F(PrivateMemoryTest, WhatWasThereIsGone) {
  memory_[0] = 1;
  memory_[kLength.value() - 1] = 2;
  ASSERT_TRUE(Empty().ok());
  // Nobody serves it any more.
  uffd_.Reset();
  EXPECT_EQ(memory_[0], 0);
  EXPECT_EQ(memory_[kLength.value() - 1], 0);
}

TEST_F(PrivateMemoryTest, MayBeDoneAgain) {
  ASSERT_TRUE(Empty().ok());
  EXPECT_TRUE(Empty().ok());
}

TEST_F(PrivateMemoryTest, LockedMemoryIsRefused) {
  // The call itself: AddressSanitizer has an mlock() that does nothing.
  if (::syscall(SYS_mlock, memory_, kPageSize) != 0) {
    GTEST_SKIP() << "mlock is not permitted";
  }
  const absl::Status status = Empty();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("do not lock it in memory"),
            absl::string_view::npos)
      << status;
}

TEST_F(PrivateMemoryTest, AHoleIsRefused) {
  ASSERT_EQ(::munmap(memory_ + kPageSize, kPageSize), 0);
  const absl::Status status = Empty();
  EXPECT_EQ(status, absl::InvalidArgumentError(
                        "private region \"ram\": it is not mapped in full"));
}

TEST_F(PrivateMemoryTest, MemoryOfAnotherUserfaultfdIsRefused) {
  const auto other = CreateUserfaultfd();
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE(Empty(other->fd.get()).ok());
  const absl::Status status = Empty();
  EXPECT_EQ(status,
            absl::FailedPreconditionError("private region \"ram\": it is "
                                          "registered with another "
                                          "userfaultfd"));
}

TEST_F(PrivateMemoryTest, MemoryOfAFileIsRefused) {
  char path[] = "/tmp/private-memory-XXXXXX";
  const UniqueFd file(::mkstemp(path));
  ASSERT_TRUE(file.valid());
  ::unlink(path);
  ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(kLength.value())), 0);
  Map(MAP_PRIVATE, file.get());
  const absl::Status status = Empty();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("it must be of no file"),
            absl::string_view::npos)
      << status;
}

// A page that is there, be it of zeros, would never be asked for.
TEST_F(PrivateMemoryTest, WhatHasBeenTouchedIsSeen) {
  const HostAddress address(reinterpret_cast<uintptr_t>(memory_));
  EXPECT_TRUE(CheckPrivateMemoryIsEmpty("ram", address, kLength).ok());
  volatile const uint8_t* const last = memory_ + kLength.value() - 1;
  EXPECT_EQ(*last, 0);
  const absl::Status status =
      CheckPrivateMemoryIsEmpty("ram", address, kLength);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("somebody has touched it"),
            absl::string_view::npos)
      << status;
  EXPECT_TRUE(
      CheckPrivateMemoryIsEmpty("ram", address, kLength - ByteCount(kPageSize))
          .ok());
}

}  // namespace
}  // namespace postcopy
