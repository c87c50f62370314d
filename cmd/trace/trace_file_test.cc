#include "cmd/trace/trace_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

std::vector<TraceEvent> Events(uint64_t first, size_t count) {
  std::vector<TraceEvent> events;
  for (uint64_t i = first; i < first + count; ++i) {
    events.push_back({.time_ns = i * 1000, .page = PageIndex(i % 100)});
  }
  return events;
}

class TraceFileTest : public testing::Test {
 protected:
  void SetUp() override { ::unlink(path_.c_str()); }
  void TearDown() override { ::unlink(path_.c_str()); }

  TraceFile Begin() {
    UniqueFd fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    auto file = TraceFile::Begin(std::move(fd), PageCount(100), "a test");
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }
  Trace Read() {
    const absl::StatusOr<Trace> trace = ReadTraceFile(path_);
    EXPECT_TRUE(trace.ok()) << trace.status();
    return trace.ok() ? *trace : Trace();
  }
  uint64_t Size() {
    struct stat about = {};
    EXPECT_EQ(::stat(path_.c_str(), &about), 0);
    return static_cast<uint64_t>(about.st_size);
  }

  const std::string path_ = testing::TempDir() + "/growing.trace";
};

TEST_F(TraceFileTest, IsAWholeTraceAfterEachCall) {
  TraceFile file = Begin();
  EXPECT_EQ(Read().origin, "a test");
  ASSERT_TRUE(file.Append(Events(0, 3), 0).ok());
  EXPECT_EQ(Read().events, Events(0, 3));
  ASSERT_TRUE(file.Append({}, 70000).ok());
  EXPECT_EQ(Read().dropped, 70000u);
  ASSERT_TRUE(file.Append(Events(3, kTraceBatchEventsMax), 0).ok());
  const Trace trace = Read();
  EXPECT_EQ(trace.events, Events(0, 3 + kTraceBatchEventsMax));
  EXPECT_EQ(trace.dropped, 0u);
  // The same bytes as in one go, but for where batches end.
  EXPECT_EQ(trace.pages, PageCount(100));
}

// The limit of a file's size stands for a file system that is full: both write
// as much as they can, then nothing.
class FullFileTest : public TraceFileTest {
 protected:
  void SetUp() override {
    TraceFileTest::SetUp();
    ::signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before_), 0);
  }
  void TearDown() override {
    Allow(before_.rlim_cur);
    TraceFileTest::TearDown();
  }
  void Allow(rlim_t bytes) const {
    const rlimit limit = {.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }

  rlimit before_ = {};
};

TEST_F(FullFileTest, WhatDoesNotFitIsLeftOut) {
  TraceFile file = Begin();
  ASSERT_TRUE(file.Append(Events(0, 10), 1).ok());
  const uint64_t size = Size();
  Allow(size + 20);
  const absl::Status full = file.Append(Events(10, 1000), 2);
  Allow(before_.rlim_cur);
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_EQ(Size(), size);
  EXPECT_EQ(Read().events, Events(0, 10));
  EXPECT_EQ(Read().dropped, 1u);
  // With room again it goes on.
  ASSERT_TRUE(file.Append(Events(10, 5), 1000).ok());
  EXPECT_EQ(Read().events, Events(0, 15));
  EXPECT_EQ(Read().dropped, 1000u);
}

TEST_F(FullFileTest, AnEarlyEndIsSaidWithTheNumberThatIsMissing) {
  TraceFile file = Begin();
  ASSERT_TRUE(file.Append(Events(0, 10), 1).ok());
  Allow(Size() + 20);
  EXPECT_FALSE(file.Append(Events(10, 1000), 2).ok());
  const auto early = file.EndEarly(1002);
  const auto later = file.EndEarly(70000);
  Allow(before_.rlim_cur);
  ASSERT_TRUE(early.ok()) << early.status();
  EXPECT_EQ(*early, 0u);
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_EQ(*later, 0u);
  EXPECT_TRUE(Read().ended_early);
  EXPECT_EQ(Read().events, Events(0, 10));
  EXPECT_EQ(Read().dropped, 70000u);
}

// Not one byte more than there is: the last events make room.
TEST_F(FullFileTest, AnEarlyEndIsSaidWhereNothingFitsAnyMore) {
  TraceFile file = Begin();
  ASSERT_TRUE(file.Append(Events(0, 10), 0).ok());
  ASSERT_TRUE(file.Append(Events(10, 3), 0).ok());
  Allow(Size());
  EXPECT_FALSE(file.Append(Events(13, 1), 0).ok());
  const auto early = file.EndEarly(1);
  const auto later = file.EndEarly(1000);
  Allow(before_.rlim_cur);
  ASSERT_TRUE(early.ok()) << early.status();
  EXPECT_EQ(*early, 3u);
  EXPECT_TRUE(later.ok()) << later.status();
  EXPECT_TRUE(Read().ended_early);
  EXPECT_EQ(Read().events, Events(0, 10));
  EXPECT_EQ(Read().dropped, 1000u);
}

// Once it is said it stays said, if not with the last number.
TEST_F(FullFileTest, AnEarlyEndThatCannotBeSaidAgainStays) {
  TraceFile file = Begin();
  ASSERT_TRUE(file.Append(Events(0, 10), 0).ok());
  ASSERT_TRUE(file.Append(Events(10, 3), 0).ok());
  Allow(Size());
  ASSERT_TRUE(file.EndEarly(1).ok());
  Allow(Size());
  const auto later = file.EndEarly(UINT64_MAX);
  Allow(before_.rlim_cur);
  EXPECT_TRUE(absl::IsResourceExhausted(later.status())) << later.status();
  EXPECT_TRUE(Read().ended_early);
  EXPECT_EQ(Read().events, Events(0, 10));
  EXPECT_EQ(Read().dropped, 4u);
}

// Better no trace than one that seems to be all.
TEST_F(FullFileTest, AnEarlyEndThatCannotBeSaidAtAllIsSeenByTheReader) {
  TraceFile file = Begin();
  Allow(Size());
  const auto early = file.EndEarly(1);
  Allow(before_.rlim_cur);
  EXPECT_TRUE(absl::IsResourceExhausted(early.status())) << early.status();
  EXPECT_TRUE(absl::IsDataLoss(ReadTraceFile(path_).status()));
}

TEST_F(FullFileTest, NoRoomForTheFirstByte) {
  Allow(4);
  UniqueFd fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  const auto file = TraceFile::Begin(std::move(fd), PageCount(1), "");
  Allow(before_.rlim_cur);
  EXPECT_TRUE(absl::IsResourceExhausted(file.status())) << file.status();
}

TEST_F(TraceFileTest, OtherErrorsAreToldAsTheyAre) {
  UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const auto file = TraceFile::Begin(std::move(fd), PageCount(1), "");
  EXPECT_TRUE(absl::IsInternal(file.status()));
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("descriptor"));
}

}  // namespace
}  // namespace postcopy
