#include "uffd/read_ring.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

// A file with the bytes 0, 1, ... 99, and a ring.
class ReadRingTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = testing::TempDir() + "/ring.XXXXXX";
    file_.Reset(::mkstemp(path.data()));
    ASSERT_TRUE(file_.valid());
    ::unlink(path.c_str());
    for (int i = 0; i < 100; ++i) bytes_.push_back(static_cast<uint8_t>(i));
    ASSERT_EQ(::write(file_.get(), bytes_.data(), bytes_.size()), 100);
  }

  // False where there is no io_uring.
  bool MakeRing(uint32_t depth) {
    absl::StatusOr<std::unique_ptr<ReadRing>> ring = CreateIoUring(depth);
    reason_ = std::string(ring.status().message());
    if (!ring.ok()) return false;
    ring_ = *std::move(ring);
    return true;
  }

  // Waits for `count` results, at most one at a time if `narrow`.
  std::vector<ReadRing::Result> Await(size_t count, bool narrow = false) {
    std::vector<ReadRing::Result> all;
    ReadRing::Result results[16];
    while (all.size() < count) {
      const absl::StatusOr<size_t> n =
          ring_->Wait(absl::MakeSpan(results, narrow ? 1 : 16));
      EXPECT_TRUE(n.ok()) << n.status();
      all.insert(all.end(), results, results + *n);
    }
    return all;
  }

  UniqueFd file_;
  std::vector<uint8_t> bytes_;
  std::unique_ptr<ReadRing> ring_;
  std::string reason_;
};

TEST_F(ReadRingTest, ReadsWhereItIsTold) {
  if (!MakeRing(1)) GTEST_SKIP() << reason_;
  std::vector<uint8_t> into(10);
  ring_->Read(7, file_.get(), 20, absl::MakeSpan(into));
  const std::vector<ReadRing::Result> results = Await(1);
  EXPECT_EQ(results[0].tag, 7u);
  EXPECT_EQ(results[0].result, 10);
  EXPECT_EQ(into,
            std::vector<uint8_t>(bytes_.begin() + 20, bytes_.begin() + 30));
}

TEST_F(ReadRingTest, ReportsShortReadsTheEndAndErrors) {
  if (!MakeRing(3)) GTEST_SKIP() << reason_;
  std::vector<uint8_t> into(30);
  const absl::Span<uint8_t> span = absl::MakeSpan(into);
  ring_->Read(0, file_.get(), 95, span.subspan(0, 10));
  ring_->Read(1, file_.get(), 100, span.subspan(10, 10));
  ring_->Read(UINT32_MAX, -1, 0, span.subspan(20, 10));
  for (const ReadRing::Result& result : Await(3)) {
    EXPECT_EQ(result.result, result.tag == 0   ? 5
                             : result.tag == 1 ? 0
                                               : -EBADF);
  }
}

TEST_F(ReadRingTest, HoldsAsManyAsItsDepthAndKeepsWhatDoesNotFit) {
  if (!MakeRing(kMaxRingDepth)) GTEST_SKIP() << reason_;
  std::vector<uint8_t> into(kMaxRingDepth);
  for (int round = 0; round < 3; ++round) {
    for (uint32_t i = 0; i < kMaxRingDepth; ++i) {
      ring_->Read(i, file_.get(), i % 100, absl::MakeSpan(&into[i], 1));
    }
    std::vector<bool> seen(kMaxRingDepth);
    for (const auto& result : Await(kMaxRingDepth, /*narrow=*/round == 1)) {
      EXPECT_EQ(result.result, 1);
      EXPECT_FALSE(seen[result.tag]);
      seen[result.tag] = true;
      EXPECT_EQ(into[result.tag], result.tag % 100);
    }
  }
}

TEST_F(ReadRingTest, AWakeBeforeTheWaitIsNotLost) {
  if (!MakeRing(1)) GTEST_SKIP() << reason_;
  ReadRing::Result results[1];
  for (int i = 0; i < 3; ++i) {
    ring_->Wake();
    ring_->Wake();
    const absl::StatusOr<size_t> count = ring_->Wait(absl::MakeSpan(results));
    ASSERT_TRUE(count.ok()) << count.status();
    EXPECT_EQ(*count, 0u);
  }
}

TEST_F(ReadRingTest, AWakeEndsAWaitAndHarmsNoRead) {
  if (!MakeRing(1)) GTEST_SKIP() << reason_;
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  const UniqueFd out(pipe[0]);
  const UniqueFd in(pipe[1]);
  uint8_t byte = 0;
  ring_->Read(1, out.get(), 0, absl::MakeSpan(&byte, 1));
  std::thread waker([&] { ring_->Wake(); });
  ReadRing::Result results[1];
  const absl::StatusOr<size_t> count = ring_->Wait(absl::MakeSpan(results));
  waker.join();
  ASSERT_TRUE(count.ok()) << count.status();
  EXPECT_EQ(*count, 0u);
  ASSERT_EQ(::write(in.get(), "x", 1), 1);
  EXPECT_EQ(Await(1)[0].result, 1);
  EXPECT_EQ(byte, 'x');
}

TEST_F(ReadRingTest, SaysThatDescriptorsAreExhausted) {
  if (!MakeRing(1)) GTEST_SKIP() << reason_;
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const UniqueFd next(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  // 0: no eventfd; 1: no ring.
  for (rlim_t free = 0; free < 2; ++free) {
    const rlimit tight = {.rlim_cur = next.get() + 1 + free,
                          .rlim_max = before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
    const absl::Status status = CreateIoUring(1).status();
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  }
}

TEST(IoUringErrorTest, SaysWhatToDo) {
  const auto message = [](int error) {
    return std::string(IoUringError(error).message());
  };
  EXPECT_EQ(IoUringError(EPERM).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(message(EPERM).find("kernel.io_uring_disabled"), std::string::npos);
  EXPECT_EQ(IoUringError(ENOSYS).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(message(ENOSYS).find("5.6"), std::string::npos);
  EXPECT_EQ(IoUringError(ENOMEM).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(message(ENOMEM).find("LimitMEMLOCK"), std::string::npos);
  EXPECT_EQ(IoUringError(EMFILE).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(IoUringError(EINVAL).code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace postcopy
