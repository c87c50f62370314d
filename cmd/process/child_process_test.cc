#include "cmd/process/child_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(20);
constexpr absl::Duration kShort = absl::Milliseconds(50);

// $1 is "--out_fd=N" in scripts that ask for the pipe "--out_fd".
constexpr char kOpenPipe[] = "exec 9>/proc/self/fd/${1#--out_fd=};";

ChildOptions Shell(const std::string& script) {
  ChildOptions options;
  options.argv = {"/bin/sh", "-c", script, "sh"};
  return options;
}

ChildOptions ShellWithPipe(const std::string& script) {
  ChildOptions options = Shell(kOpenPipe + script);
  options.pipe_flags = {"--out_fd"};
  return options;
}

std::string TempPath(const std::string& name) {
  return std::string(::testing::TempDir()) + "/" + name;
}

std::string Contents(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

bool IsGone(pid_t pid) { return ::kill(pid, 0) != 0 && errno == ESRCH; }

TEST(ChildProcessTest, ReportsTheExitCode) {
  auto child = ChildProcess::Start(Shell("exit 3"));
  ASSERT_TRUE(child.ok()) << child.status();
  auto ended = child->Wait(kLong);
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(ended->code, 3);
  EXPECT_FALSE(ended->ok());
  EXPECT_EQ(ended->ToString(), "exit code 3");
  // And again: the answer is kept.
  EXPECT_EQ(child->Wait(kShort)->code, 3);
}

TEST(ChildProcessTest, ReportsTheSignal) {
  auto child = ChildProcess::Start(Shell("kill -9 $$"));
  ASSERT_TRUE(child.ok());
  auto ended = child->Wait(kLong);
  ASSERT_TRUE(ended.ok());
  EXPECT_EQ(ended->signal, SIGKILL);
  EXPECT_EQ(ended->ToString(), "signal 9 (Killed)");
}

TEST(ChildProcessTest, AProgramThatIsNotThereIsAnError) {
  ChildOptions options;
  options.argv = {"/does/not/exist"};
  auto child = ChildProcess::Start(options);
  EXPECT_EQ(child.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(child.status().message()),
              HasSubstr("/does/not/exist"));
}

TEST(ChildProcessTest, OutputGoesToFiles) {
  ChildOptions options = Shell("echo data; echo message >&2");
  options.stdout_path = TempPath("stdout");
  options.stderr_path = TempPath("stderr");
  auto child = ChildProcess::Start(options);
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE(child->Wait(kLong).ok());
  EXPECT_EQ(Contents(options.stdout_path), "data\n");
  EXPECT_EQ(Contents(options.stderr_path), "message\n");
}

TEST(ChildProcessTest, BothStreamsMayShareAFile) {
  ChildOptions options = Shell("echo one; echo two >&2; echo three");
  options.stdout_path = options.stderr_path = TempPath("both");
  auto child = ChildProcess::Start(options);
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE(child->Wait(kLong).ok());
  EXPECT_EQ(Contents(options.stdout_path), "one\ntwo\nthree\n");
}

TEST(ChildProcessTest, ReadsLinesFromAPipe) {
  auto child = ChildProcess::Start(ShellWithPipe("echo one >&9; echo two >&9"));
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(child->ReadLine("--out_fd", kLong).value(), "one");
  EXPECT_EQ(child->ReadLine("--out_fd", kLong).value(), "two");
  auto none = child->ReadLine("--out_fd", kLong);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kUnavailable);
}

TEST(ChildProcessTest, ALineWithoutItsEndIsNotALine) {
  auto child = ChildProcess::Start(ShellWithPipe("printf half >&9"));
  ASSERT_TRUE(child.ok());
  auto line = child->ReadLine("--out_fd", kLong);
  EXPECT_EQ(line.status().code(), absl::StatusCode::kUnavailable);
}

TEST(ChildProcessTest, AReadThatTimedOutLosesNothing) {
  auto child = ChildProcess::Start(
      ShellWithPipe("printf ha >&9; sleep 0.3; echo lf >&9; exec sleep 60"));
  ASSERT_TRUE(child.ok());
  auto early = child->ReadLine("--out_fd", kShort);
  EXPECT_EQ(early.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(child->ReadLine("--out_fd", kLong).value(), "half");
}

TEST(ChildProcessTest, ALineWithoutBoundIsRefused) {
  auto child =
      ChildProcess::Start(ShellWithPipe("head -c 200000 /dev/zero >&9"));
  ASSERT_TRUE(child.ok());
  auto line = child->ReadLine("--out_fd", kLong);
  EXPECT_EQ(line.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(line.status().message()), HasSubstr("too long"));
}

TEST(ChildProcessTest, WaitIsBounded) {
  auto child = ChildProcess::Start(Shell("exec sleep 60"));
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(child->Wait(kShort).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(ChildProcessTest, TerminateLetsTheChildCleanUp) {
  auto child = ChildProcess::Start(ShellWithPipe(
      "trap 'exit 7' TERM; echo ready >&9; while :; do sleep 0.02; done"));
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE(child->ReadLine("--out_fd", kLong).ok());
  auto ended = child->Terminate(kLong);
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(ended->code, 7);
}

TEST(ChildProcessTest, TerminateKillsWhoDoesNotListen) {
  auto child = ChildProcess::Start(ShellWithPipe(
      "trap '' TERM; echo ready >&9; while :; do sleep 0.02; done"));
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE(child->ReadLine("--out_fd", kLong).ok());
  pid_t pid = child->pid();
  auto ended = child->Terminate(absl::Milliseconds(100));
  EXPECT_EQ(ended.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(IsGone(pid));
}

TEST(ChildProcessTest, SignallingAnEndedChildIsNoError) {
  auto child = ChildProcess::Start(Shell("exit 0"));
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE(child->Wait(kLong).ok());
  EXPECT_TRUE(child->Signal(SIGTERM).ok());
  EXPECT_TRUE(child->Terminate(kShort)->ok());
}

TEST(ChildProcessTest, TheDestructorKills) {
  pid_t pid;
  {
    auto child = ChildProcess::Start(Shell("exec sleep 60"));
    ASSERT_TRUE(child.ok());
    pid = child->pid();
    ChildProcess moved = std::move(*child);
    EXPECT_FALSE(IsGone(pid));
  }
  EXPECT_TRUE(IsGone(pid));
}

TEST(ChildProcessTest, AssignmentKillsTheOneBefore) {
  auto first = ChildProcess::Start(Shell("exec sleep 60"));
  auto second = ChildProcess::Start(Shell("exit 4"));
  ASSERT_TRUE(first.ok() && second.ok());
  pid_t pid = first->pid();
  *first = std::move(*second);
  EXPECT_TRUE(IsGone(pid));
  EXPECT_EQ(first->Wait(kLong)->code, 4);
}

TEST(ChildProcessTest, TheChildDiesWithItsParent) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  pid_t parent = ::fork();
  ASSERT_GE(parent, 0);
  if (parent == 0) {
    auto child = ChildProcess::Start(Shell("exec sleep 60"));
    pid_t pid = child.ok() ? child->pid() : -1;
    ssize_t size = ::write(ends[1], &pid, sizeof(pid));
    // Without destructors, as if it had been killed.
    ::_exit(size == sizeof(pid) ? 0 : 1);
  }
  pid_t pid = -1;
  ASSERT_EQ(::read(ends[0], &pid, sizeof(pid)),
            static_cast<ssize_t>(sizeof(pid)));
  ::close(ends[0]);
  ::close(ends[1]);
  ::waitpid(parent, nullptr, 0);
  ASSERT_GT(pid, 0);
  // The grandchild's own parent is init now; a zombie of it counts as dead.
  std::string stat;
  for (int i = 0; i < 500; ++i) {
    stat = Contents("/proc/" + std::to_string(pid) + "/stat");
    if (stat.empty() || stat.find(") Z ") != std::string::npos) return;
    absl::SleepFor(absl::Milliseconds(10));
  }
  FAIL() << "still there: " << stat;
}

TEST(ChildProcessTest, OnlyTheNamedDescriptorsAreInherited) {
  // Not O_CLOEXEC, as some library might open it.
  int leak = ::open("/dev/null", O_RDONLY);
  ASSERT_GE(leak, 0);
  auto child = ChildProcess::Start(
      ShellWithPipe("if [ -e /proc/self/fd/" + std::to_string(leak) +
                    " ]; then echo leaked >&9; else echo clean >&9; fi"));
  ::close(leak);
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(child->ReadLine("--out_fd", kLong).value(), "clean");
}

TEST(TailOfFileTest, TakesTheLastLines) {
  std::string path = TempPath("tail");
  std::ofstream(path) << "1\n2\n3\n";
  EXPECT_EQ(TailOfFile(path, 2), "2\n3\n");
  EXPECT_EQ(TailOfFile(path, 3), "1\n2\n3\n");
  EXPECT_EQ(TailOfFile(path, 9), "1\n2\n3\n");
  std::ofstream(path) << "no newline";
  EXPECT_EQ(TailOfFile(path, 1), "no newline");
  EXPECT_EQ(TailOfFile(TempPath("absent"), 1), "");
}

TEST(TailOfFileTest, ReadsNoMoreThanItsLimit) {
  std::string path = TempPath("big");
  std::ofstream(path) << std::string(1'000'000, 'x');
  EXPECT_LE(TailOfFile(path, 5).size(), 64u * 1024);
}

}  // namespace
}  // namespace postcopy
