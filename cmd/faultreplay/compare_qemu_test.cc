// faultreplay beside real QEMUs; skipped where none is installed.
#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cmd/faultreplay/program_fixture.h"
#include "dirtytrack/userfaultfd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kQemu[] = "/usr/bin/qemu-system-x86_64";

class CompareQemuTest : public FaultReplayTest {
 protected:
  void SetUp() override {
    if (::access(kQemu, X_OK) != 0) {
      GTEST_SKIP() << "QEMU is not installed: there is no " << kQemu;
    }
    if (::access("/dev/kvm", R_OK | W_OK) != 0) {
      GTEST_SKIP() << "/dev/kvm is missing";
    }
    const auto uffd = CreateUserfaultfd();
    if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  }
};

// How many processes have memory that process `owner` has given them.
int QemusOf(pid_t owner) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::stringstream text;
    text << std::ifstream(entry.path() / "cmdline").rdbuf();
    count += absl::StrContains(text.str(),
                               absl::StrCat("mem-path=/proc/", owner, "/fd/"));
  }
  return count;
}

// Within half a minute.
bool Becomes(pid_t owner, int qemus) {
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (QemusOf(owner) != qemus) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

TEST_F(CompareQemuTest, BothUnderTheSameTouches) {
  ASSERT_EQ(Run({"compare", "qemu", "--ram=64MiB", "--touches=300",
                 "--repeats=1", absl::StrCat("--qemu=", kQemu),
                 "--json=" + At("r.json"), "--html=" + At("r.html")}),
            0)
      << err_;
  EXPECT_THAT(out_, AllOf(HasSubstr("Postcopy beside QEMU's own"),
                          HasSubstr("migration (medians)"),
                          HasSubstr("touched by a vCPU"),
                          HasSubstr("service: whole migration / QEMU's"),
                          HasSubstr("service:limit=256MiB: p99 of a fault")));
  EXPECT_THAT(Content("r.json"),
              AllOf(HasSubstr("\"name\":\"qemu\""),
                    HasSubstr("\"name\":\"qemu:preempt:limit=256MiB\""),
                    HasSubstr("\"name\":\"service\""),
                    HasSubstr("\"pages_checked\":16384"),
                    HasSubstr("\"migration_us\":")));
  EXPECT_THAT(Content("r.html"), HasSubstr("qemu:preempt"));
}

TEST_F(CompareQemuTest, ALostPageFailsTheRun) {
  EXPECT_EQ(Run({"run", "--backend=qemu", absl::StrCat("--qemu=", kQemu),
                 "--ram=1MiB", "--touches=50", "--repeats=1",
                 "--placement=spread", "--lose_page=77"}),
            1);
  EXPECT_THAT(err_, HasSubstr("page 77"));
}

TEST_F(CompareQemuTest, AnInterruptLeavesNoQemu) {
  auto child = Start({"run", "--backend=qemu:limit=1MiB", "--ram=256MiB",
                      absl::StrCat("--qemu=", kQemu)});
  ASSERT_TRUE(child.ok()) << child.status();
  const pid_t pid = child->pid();
  ASSERT_TRUE(Becomes(pid, 2)) << Content("err");
  ASSERT_TRUE(child->Signal(SIGINT).ok());
  const auto ended = child->Wait(absl::Seconds(30));
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(ended->signal, SIGINT);
  EXPECT_TRUE(Becomes(pid, 0));
}

}  // namespace
}  // namespace postcopy
