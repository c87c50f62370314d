#include "cmd/daemon/serve.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "cmd/daemon/daemon.h"
#include "cmd/systemd/test_support.h"

namespace postcopy {
namespace {

const absl::Time kStart = absl::UnixEpoch();
constexpr DaemonLoad kIdle = {};
constexpr DaemonLoad kNeeded = {.vms = 3, .migrations = 2, .needing = 1};

TEST(DescribeTest, SaysWhatTheDaemonDoes) {
  EXPECT_EQ(Describe(kIdle), "0 VMs, 0 migrations");
  EXPECT_EQ(Describe({.vms = 1, .migrations = 1}), "1 VM, 1 migration");
  EXPECT_EQ(Describe(kNeeded),
            "3 VMs, 2 migrations, 1 guest needs this daemon for missing pages");
  EXPECT_EQ(Describe({.needing = 2}),
            "0 VMs, 0 migrations, 2 guests need this daemon for missing pages");
  EXPECT_EQ(Describe({.vms = 3, .failing = 1}),
            "3 VMs, 0 migrations; pages of 1 VM cannot be had, see the log");
}

TEST(DaemonLoadTest, AddsUp) {
  DaemonLoad load = kNeeded;
  load += {.vms = 10, .migrations = 20, .needing = 30, .failing = 4};
  EXPECT_EQ(load.failing, 4u);
  EXPECT_EQ(load.vms, 13u);
  EXPECT_EQ(load.migrations, 22u);
  EXPECT_EQ(load.needing, 31u);
}

TEST(DrainTest, WhoIsNeededByNobodyEndsAtOnce) {
  Drain drain;
  EXPECT_TRUE(drain.Ask(kStart));
  EXPECT_TRUE(drain.IsOver(kIdle, absl::InfiniteDuration(), kStart));
  EXPECT_TRUE(drain.IsOver({.vms = 9, .migrations = 9},
                           absl::InfiniteDuration(), kStart))
      << "in precopy the guest is elsewhere";
}

TEST(DrainTest, WhoIsNeededStaysUntilNobodyNeedsIt) {
  Drain drain;
  drain.Ask(kStart);
  EXPECT_FALSE(drain.IsOver(kNeeded, absl::InfiniteDuration(),
                            kStart + absl::Hours(1000)));
  EXPECT_TRUE(drain.IsOver(kIdle, absl::InfiniteDuration(), kStart));
}

TEST(DrainTest, ASecondRequestIsObeyed) {
  Drain drain;
  EXPECT_FALSE(drain.asked());
  EXPECT_TRUE(drain.Ask(kStart));
  EXPECT_TRUE(drain.asked());
  EXPECT_FALSE(drain.Ask(kStart));
  EXPECT_TRUE(drain.IsOver(kNeeded, absl::InfiniteDuration(), kStart));
}

TEST(DrainTest, TheTimeoutCountsFromTheFirstRequest) {
  Drain drain;
  drain.Ask(kStart);
  const absl::Duration timeout = absl::Seconds(10);
  EXPECT_FALSE(
      drain.IsOver(kNeeded, timeout, kStart + timeout - absl::Nanoseconds(1)));
  EXPECT_TRUE(drain.IsOver(kNeeded, timeout, kStart + timeout));
  EXPECT_TRUE(drain.IsOver(kNeeded, absl::ZeroDuration(), kStart));
}

TEST(DrainTest, SaysWhyNotAndWhatToDo) {
  Drain drain;
  drain.Ask(kStart);
  EXPECT_EQ(drain.WhyNot(kNeeded, absl::InfiniteDuration(), kStart),
            "told to end, but stays: 1 guest needs it for missing pages. "
            "SIGTERM once more ends it at once");
  EXPECT_EQ(drain.WhyNot({.needing = 2}, absl::Seconds(10),
                         kStart + absl::Milliseconds(2500)),
            "told to end, but stays: 2 guests need it for missing pages. "
            "SIGTERM once more ends it at once; else it ends in 8s");
}

// Serve in a thread that takes the signals main would.
class ServeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    BlockDaemonSignals();
    ::setenv("WATCHDOG_USEC", "40000", 1);
    ::setenv("WATCHDOG_PID", std::to_string(::getpid()).c_str(), 1);
    thread_ = std::thread([this] {
      Serve({.log = [](const std::string& /*sentence*/) {},
             .load =
                 [this] {
                   return DaemonLoad{.vms = 1, .needing = needing_.load()};
                 },
             .stop_taking =
                 [this] {
                   ++stops_;
                   while (slow_) std::this_thread::yield();
                 },
             .shows_life = [this] { return alive_.load(); },
             .drain_timeout = [] { return absl::InfiniteDuration(); },
             .reload =
                 [this] {
                   ++reloads_;
                   return std::string("has read it");
                 }});
      ended_ = true;
    });
  }
  void TearDown() override {
    if (thread_.joinable()) {
      slow_ = false;
      needing_ = 0;
      Send(SIGTERM);
      thread_.join();
    }
    ::unsetenv("WATCHDOG_USEC");
    ::unsetenv("WATCHDOG_PID");
  }

  void Send(int signal) { ::pthread_kill(thread_.native_handle(), signal); }

  NotifySocket manager_;
  std::atomic<size_t> needing_{0};
  std::atomic<bool> alive_{true};
  std::atomic<bool> slow_{false};
  std::atomic<int> stops_{0};
  std::atomic<int> reloads_{0};
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

TEST_F(ServeTest, TellsItsLifeToTheServiceManager) {
  EXPECT_EQ(manager_.Next(), "STATUS=1 VM, 0 migrations");
  EXPECT_EQ(manager_.Next(), "READY=1");
  EXPECT_EQ(manager_.Next(), "WATCHDOG=1");
  Send(SIGHUP);
  EXPECT_EQ(manager_.Await("RELOADING"), "RELOADING=1");
  EXPECT_EQ(manager_.Await("READY"), "READY=1");
  EXPECT_EQ(reloads_, 1);
  needing_ = 1;
  EXPECT_EQ(manager_.Await("STATUS"),
            "STATUS=1 VM, 0 migrations, 1 guest needs this daemon for missing "
            "pages");
  Send(SIGTERM);
  EXPECT_EQ(manager_.Await("EXTEND"), "EXTEND_TIMEOUT_USEC=30000000");
  EXPECT_NE(manager_.Await("STATUS=told to end, but stays").size(), 0u);
  EXPECT_EQ(stops_, 1);
  EXPECT_FALSE(ended_);
  needing_ = 0;
  EXPECT_EQ(manager_.Await("STOPPING"), "STOPPING=1");
  thread_.join();
}

// A VMM that does not answer must not get the daemon killed under the others.
TEST_F(ServeTest, IsAliveWhileWhatCanBeGivenUpIs) {
  slow_ = true;
  Send(SIGTERM);
  manager_.Await("STATUS=told to end: cancels");
  EXPECT_EQ(manager_.Await("WATCHDOG"), "WATCHDOG=1");
  EXPECT_EQ(manager_.Await("EXTEND"), "EXTEND_TIMEOUT_USEC=30000000");
  EXPECT_FALSE(ended_);
  slow_ = false;
  EXPECT_EQ(manager_.Await("STOPPING"), "STOPPING=1");
  thread_.join();
  EXPECT_EQ(stops_, 1);
}

TEST_F(ServeTest, IsSilentWhileAThreadIsStuck) {
  manager_.Await("WATCHDOG");
  alive_ = false;
  // What follows the next status came without a sign of life between.
  needing_ = 1;
  manager_.Await("STATUS");
  needing_ = 2;
  EXPECT_EQ(manager_.Next().substr(0, 7), "STATUS=");
  alive_ = true;
  EXPECT_EQ(manager_.Await("WATCHDOG"), "WATCHDOG=1");
}

TEST_F(ServeTest, ASecondSignalEndsItAlthoughItIsNeeded) {
  needing_ = 1;
  Send(SIGTERM);
  manager_.Await("EXTEND");
  Send(SIGINT);
  EXPECT_EQ(manager_.Await("STOPPING"), "STOPPING=1");
  thread_.join();
  EXPECT_EQ(stops_, 1);
}

}  // namespace
}  // namespace postcopy
