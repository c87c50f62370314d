#include "cmd/systemd/service_manager.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "cmd/systemd/test_support.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

TEST(ServiceManagerTest, WithoutOneNothingIsSaid) {
  ::unsetenv("NOTIFY_SOCKET");
  ::unsetenv("WATCHDOG_USEC");
  const ServiceManager manager;
  EXPECT_FALSE(manager.there());
  EXPECT_EQ(manager.watchdog(), absl::InfiniteDuration());
  manager.Ready();
  manager.Status("x");
}

TEST(ServiceManagerTest, SaysWhatIsInItsProtocol) {
  NotifySocket socket;
  const ServiceManager manager;
  EXPECT_TRUE(manager.there());
  manager.Ready();
  manager.Reloading();
  manager.Stopping();
  manager.Status("2 VMs");
  manager.Alive();
  manager.NeedsTime(absl::Seconds(3));
  for (const char* message :
       {"READY=1", "RELOADING=1", "STOPPING=1", "STATUS=2 VMs", "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=3000000"}) {
    EXPECT_EQ(socket.Next(), message);
  }
}

TEST(ServiceManagerTest, TheWatchdogIsOnlyForTheProcessThatIsMeant) {
  ::setenv("WATCHDOG_USEC", "5000000", 1);
  ::setenv("WATCHDOG_PID", std::to_string(::getpid()).c_str(), 1);
  EXPECT_EQ(ServiceManager().watchdog(), absl::Seconds(5));
  ::setenv("WATCHDOG_PID", "1", 1);
  EXPECT_EQ(ServiceManager().watchdog(), absl::InfiniteDuration());
  ::unsetenv("WATCHDOG_USEC");
  ::unsetenv("WATCHDOG_PID");
}

// Passes sockets of these names to `body` in a process of its own, whose exit
// code it returns.
template <typename Body>
int WithPassed(const std::vector<std::string>& names, Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (size_t i = 0; i < names.size(); ++i) {
      const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
      ::dup2(fd, 100);
      ::dup2(100, 3 + static_cast<int>(i));
    }
    ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
    ::setenv("LISTEN_FDS", std::to_string(names.size()).c_str(), 1);
    ::setenv("LISTEN_FDNAMES", absl::StrJoin(names, ":").c_str(), 1);
    ::_exit(body() ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(PassedSocketsTest, AreTakenByName) {
  EXPECT_EQ(WithPassed({"firecracker", "vmm"},
                       [] {
                         auto sockets = TakePassedSockets();
                         return sockets.ok() && sockets->size() == 2 &&
                                TakeSocket(*sockets, kVmmSocketName) == 4 &&
                                TakeSocket(*sockets, kVmmSocketName) == -1 &&
                                std::getenv("LISTEN_FDS") == nullptr;
                       }),
            0);
}

// Or a VM that is restored waits for ever, and nobody knows.
TEST(PassedSocketsTest, OneThatNobodyServesIsTold) {
  std::map<std::string, UniqueFd> sockets;
  EXPECT_EQ(DescribeUnused(sockets), "");
  sockets[kFirecrackerSocketName] = UniqueFd();
  EXPECT_TRUE(absl::StrContains(DescribeUnused(sockets), "(firecracker)"));
  sockets[kVmmSocketName] = UniqueFd();
  EXPECT_TRUE(absl::StrContains(DescribeUnused(sockets), "(firecracker, vmm)"));
}

TEST(PassedSocketsTest, NonePassedIsNoError) {
  const auto sockets = TakePassedSockets();
  ASSERT_TRUE(sockets.ok());
  EXPECT_TRUE(sockets->empty());
}

TEST(PassedSocketsTest, ANameThatIsNotKnownOrThereTwiceIsAnError) {
  for (const std::vector<std::string>& names :
       {std::vector<std::string>{"faultd.socket"}, {"vmm", "vmm"}}) {
    EXPECT_EQ(WithPassed(names,
                         [&] {
                           const auto sockets = TakePassedSockets();
                           return absl::IsInvalidArgument(sockets.status()) &&
                                  absl::StrContains(sockets.status().message(),
                                                    names.back());
                         }),
              0);
  }
}

}  // namespace
}  // namespace postcopy
