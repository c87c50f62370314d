// Real programs are recorded, and do not notice.
#include <stdlib.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "cmd/process/child_process.h"
#include "cmd/trace/trace_codec.h"
#include "dirtytrack/userfaultfd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Minutes(2);
constexpr char kProgram[] = "cmd/faultreplay/recorded_program";

class RecordTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string path = "/tmp/record-test-XXXXXX";
    directory_ = ::mkdtemp(path.data());
    const auto uffd = CreateUserfaultfd();
    if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  }
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  std::string In(const std::string& name) const {
    return directory_ + "/" + name;
  }
  std::string Content(const std::string& name) const {
    std::stringstream text;
    text << std::ifstream(In(name), std::ios::binary).rdbuf();
    return text.str();
  }
  void Touch(const std::string& name) const { std::ofstream(In(name)) << "x"; }

  void Start(std::vector<std::string> arguments) {
    ChildOptions options;
    options.argv = {"cmd/faultreplay/faultreplay", "record"};
    options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
    options.stdout_path = In("out");
    options.stderr_path = In("err");
    auto child = ChildProcess::Start(options);
    ASSERT_TRUE(child.ok()) << child.status();
    child_ = *std::move(child);
  }
  // The program begins when it has its memory, goes on when it is recorded.
  void StartProgram(std::vector<std::string> flags,
                    const std::string& then = "") {
    // A flag behind "--" would be the program's.
    const std::vector<std::string> own = {"--out=" + In("a.trace"),
                                          "--after_file=" + In("ready"),
                                          "--",
                                          kProgram,
                                          In("ready"),
                                          In("go")};
    flags.insert(flags.end(), own.begin(), own.end());
    if (!then.empty()) flags.push_back(then);
    Start(flags);
    if (!AwaitRecording()) return;
    Touch("go");
  }
  // False if it has ended instead.
  bool AwaitRecording() {
    while (!absl::StrContains(Content("err"), "recording")) {
      if (child_->Wait(absl::Milliseconds(5)).ok()) return false;
    }
    return true;
  }
  int End() {
    const auto ended = child_->Wait(kPatience);
    EXPECT_TRUE(ended.ok()) << ended.status();
    return ended.ok() ? ended->code : -1;
  }
  // Where this machine does not let us.
  bool MayNot() const {
    return absl::StrContains(Content("err"), "not permitted");
  }

  std::string directory_;
  std::optional<ChildProcess> child_;
};

TEST_F(RecordTest, AProgramFindsItsMemoryAsItWasAndItsTouchesAreInTheTrace) {
  StartProgram({"--region_min=1MiB"});
  const int code = End();
  if (MayNot()) GTEST_SKIP() << Content("err");
  EXPECT_EQ(code, 0) << Content("err");
  EXPECT_EQ(Content("out"), "right: yes\n");
  const absl::StatusOr<Trace> trace = ReadTraceFile(In("a.trace"));
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_THAT(trace->origin, HasSubstr(kProgram));
  EXPECT_EQ(trace->dropped, 0u);
  std::map<uint64_t, TraceEvent> first;
  std::map<uint32_t, std::vector<uint64_t>> by_thread;
  for (const TraceEvent& event : trace->events) {
    if (!first.emplace(event.page.value(), event).second) continue;
    by_thread[event.thread].push_back(event.page.value());
  }
  EXPECT_GE(first.size(), 512u);
  // Two threads read downwards, every second page each.
  size_t readers = 0;
  for (const auto& [thread, pages] : by_thread) {
    size_t steps_of_two = 0;
    for (size_t i = 1; i < pages.size(); ++i) {
      if (pages[i] + 2 == pages[i - 1]) ++steps_of_two;
    }
    if (steps_of_two == 255) ++readers;
  }
  EXPECT_EQ(readers, 2u);
  for (const TraceEvent& event : trace->events) {
    EXPECT_NE(event.thread, 0u);
  }
}

TEST_F(RecordTest, SmallMappingsHeapAndThreadsCanBeTakenToo) {
  StartProgram({"--region_min=4096"});
  const int code = End();
  if (MayNot()) GTEST_SKIP() << Content("err");
  EXPECT_EQ(code, 0) << Content("err");
  EXPECT_EQ(Content("out"), "right: yes\n");
}

TEST_F(RecordTest, AProgramMaySpawnAnother) {
  StartProgram({}, "spawn");
  const int code = End();
  if (MayNot()) GTEST_SKIP() << Content("err");
  EXPECT_EQ(code, 0) << Content("err");
  EXPECT_EQ(Content("out"), "right: yes\n");
}

// What cannot be taken is left as it is, and all the rest is recorded.
TEST_F(RecordTest, MemoryThatIsLockedOrAnothersStaysAsItIs) {
  std::map<std::string, int> regions;
  for (const std::string how : {"more", "locked", "owned"}) {
    std::filesystem::remove(In("ready"));
    std::filesystem::remove(In("go"));
    StartProgram({"--region_min=1MiB"}, how);
    const int code = End();
    if (MayNot()) GTEST_SKIP() << Content("err");
    EXPECT_EQ(code, 0) << how << ": " << Content("err");
    EXPECT_EQ(Content("out"), "right: yes\n") << how;
    const absl::StatusOr<Trace> trace = ReadTraceFile(In("a.trace"));
    ASSERT_TRUE(trace.ok()) << trace.status();
    ASSERT_EQ(std::sscanf(trace->origin.c_str(), "faultreplay record, %d ",
                          &regions[how]),
              1)
        << trace->origin;
  }
  EXPECT_EQ(regions["locked"], regions["more"] - 1);
  EXPECT_EQ(regions["owned"], regions["more"] - 1);
}

// Its child would read zeros: it is ended before that.
TEST_F(RecordTest, AProgramThatForksIsEndedAndToldOf) {
  StartProgram({}, "fork");
  EXPECT_EQ(End(), 1);
  if (MayNot()) GTEST_SKIP() << Content("err");
  EXPECT_THAT(Content("err"), HasSubstr("the program forked"));
  EXPECT_FALSE(std::filesystem::exists(In("a.trace")));
}

TEST_F(RecordTest, SoManyTouchesAndNoMore) {
  StartProgram({"--region_min=1MiB", "--events_max=100"});
  const int code = End();
  if (MayNot()) GTEST_SKIP() << Content("err");
  EXPECT_EQ(code, 0) << Content("err");
  const absl::StatusOr<Trace> trace = ReadTraceFile(In("a.trace"));
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->events.size(), 100u);
  EXPECT_GE(trace->dropped, 412u);
}

// The limit of a file's size, set once faultd has begun the trace, stands for
// a disk that is full.
TEST_F(RecordTest, ATraceThatEndsEarlyIsNoSuccess) {
  std::ofstream(In("faultd"))
      << "#!/bin/sh\n"
         "for flag; do\n"
         "  case \"$flag\" in --trace_dir=*) dir=\"${flag#--trace_dir=}\" ;; "
         "esac\n"
         "done\n"
         "(\n"
         "  until [ \"$(echo \"$dir\"/*.trace)\" != \"$dir/*.trace\" ]; do\n"
         "    sleep 0.01\n"
         "  done\n"
         "  prlimit --pid $$ --fsize=1024; : >"
      << In("limited")
      << "\n) &\n"
         "exec cmd/faultd/faultd \"$@\"\n";
  std::filesystem::permissions(In("faultd"), std::filesystem::perms::owner_all);
  Start({"--out=" + In("a.trace"), "--after_file=" + In("ready"),
         "--region_min=1MiB", "--faultd=" + In("faultd"), "--", kProgram,
         In("ready"), In("go")});
  if (AwaitRecording()) {
    while (!std::filesystem::exists(In("limited"))) {
      ASSERT_FALSE(child_->Wait(absl::Milliseconds(5)).ok()) << Content("err");
    }
  }
  Touch("go");
  EXPECT_EQ(End(), 1);
  if (MayNot()) GTEST_SKIP() << Content("err");
  EXPECT_EQ(Content("out"), "right: yes\n") << Content("err");
  EXPECT_THAT(Content("err"), HasSubstr("the trace ends early"));
  const absl::StatusOr<Trace> trace = ReadTraceFile(In("a.trace"));
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_TRUE(trace->ended_early);
  EXPECT_GE(trace->dropped, 512u);
}

TEST_F(RecordTest, AProgramThatDoesNotEndIsToldToAfterTheDuration) {
  Start({"--out=" + In("a.trace"), "--after_file=" + In("ready"),
         "--duration=50ms", "--", kProgram, In("ready"), In("never")});
  EXPECT_EQ(End(), MayNot() ? 1 : 0) << Content("err");
  if (MayNot()) GTEST_SKIP() << Content("err");
  EXPECT_TRUE(ReadTraceFile(In("a.trace")).ok());
}

TEST_F(RecordTest, WhatEndsTooEarlyOrCannotStartIsTold) {
  Start({"--out=" + In("a.trace"), "--after=1h", "--", "/bin/true"});
  EXPECT_EQ(End(), 1);
  EXPECT_THAT(Content("err"), HasSubstr("before it was recorded"));
  Start({"--out=" + In("a.trace"), "--", In("no_such_program")});
  EXPECT_EQ(End(), 1);
  EXPECT_THAT(Content("err"), HasSubstr("cannot start"));
  Start({"--out=" + In("a.trace"), "--after=0s", "--faultd=/bin/no", "--",
         "/bin/sleep", "60"});
  EXPECT_EQ(End(), 1);
  EXPECT_THAT(Content("err"), HasSubstr("not at /bin/no"));
}

TEST_F(RecordTest, AProgramWithoutSuchMemoryIsTold) {
  Start({"--out=" + In("a.trace"), "--after=100ms", "--region_min=1TiB", "--",
         "/bin/sleep", "60"});
  EXPECT_EQ(End(), 1);
  if (MayNot()) GTEST_SKIP() << Content("err");
  EXPECT_THAT(Content("err"), HasSubstr("no private anonymous memory"));
}

TEST_F(RecordTest, AFaultdThatFailsEndsTheProgram) {
  Start({"--out=" + In("a.trace"), "--after=100ms", "--faultd=/bin/false",
         "--region_min=4096", "--", "/bin/sleep", "60"});
  EXPECT_EQ(End(), 1);
  if (MayNot()) GTEST_SKIP() << Content("err");
  EXPECT_THAT(Content("err"), HasSubstr("faultd"));
}

TEST_F(RecordTest, WrongUsageIsToldSo) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{
           {},
           {"--out=x"},
           {"--", "/bin/true"},
           {"--out=x", "--events_max=0", "--", "/bin/true"},
           {"--out=x", "--events_max=4194305", "--", "/bin/true"},
           {"--out=x", "--after=-1s", "--", "/bin/true"},
           {"--out=x", "--duration=0s", "--", "/bin/true"}}) {
    Start(arguments);
    EXPECT_EQ(End(), 2) << ::testing::PrintToString(arguments);
  }
}

}  // namespace
}  // namespace postcopy
