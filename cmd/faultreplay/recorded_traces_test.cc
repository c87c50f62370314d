// The traces of real programs that are kept here.
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "cmd/process/child_process.h"
#include "cmd/trace/trace_codec.h"
#include "dirtytrack/userfaultfd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

// The largest that is kept.
constexpr uint64_t kFileBytesMax = 1 << 20;

std::string PathOf(const std::string& name) {
  return "cmd/faultreplay/testdata/" + name + ".trace";
}

struct Kept {
  const char* name;
  // In its command.
  const char* program;
  size_t threads_min;
};

class RecordedTraceTest : public ::testing::TestWithParam<Kept> {};

INSTANTIATE_TEST_SUITE_P(
    Kept, RecordedTraceTest,
    ::testing::Values(Kept{"linux_boot", "qemu-system-x86_64", 2},
                      Kept{"redis", "redis-server", 1},
                      Kept{"compile", "cc1plus", 1}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(RecordedTraceTest, HasTouchesOfItsProgramWithTimes) {
  const std::string path = PathOf(GetParam().name);
  EXPECT_LT(std::filesystem::file_size(path), kFileBytesMax);
  const absl::StatusOr<Trace> trace = ReadTraceFile(path);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_THAT(trace->origin, HasSubstr(GetParam().program));
  EXPECT_GT(trace->pages.value(), 1000u);
  std::set<uint64_t> pages;
  std::set<uint32_t> threads;
  size_t writes = 0, with_times = 0;
  for (const TraceEvent& event : trace->events) {
    pages.insert(event.page.value());
    threads.insert(event.thread);
    if (event.kind == TouchKind::kWrite) ++writes;
    if (event.stages_ns[2] > 0) ++with_times;
  }
  EXPECT_GT(pages.size(), 500u);
  EXPECT_GE(threads.size(), GetParam().threads_min);
  EXPECT_EQ(threads.count(0), 0u);
  EXPECT_GT(writes, 0u);
  EXPECT_LT(writes, trace->events.size());
  // Nearly all: a page that two threads touch at once has times once.
  EXPECT_GT(with_times, trace->events.size() * 9 / 10);
  EXPECT_GT(trace->events.back().time_ns, 0u);
}

TEST_P(RecordedTraceTest, IsReplayed) {
  const auto uffd = CreateUserfaultfd();
  if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  const std::string err = ::testing::TempDir() + "/err";
  auto child = ChildProcess::Start(
      {.argv = {"cmd/faultreplay/faultreplay", "run", "--backend=local",
                "--repeats=1", PathOf(GetParam().name)},
       .stdout_path = "/dev/null",
       .stderr_path = err});
  ASSERT_TRUE(child.ok()) << child.status();
  const auto ended = child->Wait(absl::Minutes(2));
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_TRUE(ended->ok()) << TailOfFile(err, 10);
}

}  // namespace
}  // namespace postcopy
