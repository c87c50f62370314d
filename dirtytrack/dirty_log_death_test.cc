// Writers whose process is killed, and logs that are superseded.

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "dirtytrack/check.h"
#include "dirtytrack/dirty_log.h"
#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"

namespace postcopy {

// Lets a test stand still inside a section.
class DirtyLogWriterPeer {
 public:
  static void Enter(DirtyLogWriter& writer) { writer.Enter(); }
};

namespace {

using absl::StatusCode;
using Peer = DirtyLogWriterPeer;

constexpr SlotId kSlot{0, 0};
constexpr PageCount kPages{100};

// A process with a writer of its own, as a VMM or a back-end has.
class WriterProcess {
 public:
  // Runs `act` with a writer of the log behind `fd`, then stays.
  WriterProcess(int fd, const std::function<void(DirtyLogWriter&)>& act) {
    int done[2];
    POSTCOPY_CHECK(::pipe2(done, O_CLOEXEC) == 0);
    pid_ = ::fork();
    POSTCOPY_CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      auto log = DirtyLogSet::Open(UniqueFd(::dup(fd)), {{{kSlot, kPages}}});
      if (!log.ok()) ::_exit(1);
      DirtyLogWriter writer = *log->NewWriter();
      act(writer);
      if (::write(done[1], "", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char byte = 0;
    POSTCOPY_CHECK(::read(done[0], &byte, 1) == 1);
    ::close(done[0]);
    ::close(done[1]);
  }
  ~WriterProcess() { Kill(); }

  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  }

 private:
  pid_t pid_ = -1;
};

class DeadWriterTest : public testing::Test {
 protected:
  DeadWriterTest()
      : log_(*DirtyLogSet::Create({{{kSlot, kPages}}}, &clock_)),
        writer_(log_.NewWriter().value()) {}

  SimulatedClock clock_;
  DirtyLogSet log_;
  std::optional<DirtyLogWriter> writer_;
};

// Killed inside its section: the switch does not wait, not even the second
// that a live one would get, and goes on for ever after.
TEST_F(DeadWriterTest, OneThatDiesInItsSectionHoldsNothingUp) {
  WriterProcess process(log_.fd(), [](DirtyLogWriter& writer) {
    writer.Mark(kSlot, PageIndex(7));
    Peer::Enter(writer);
  });
  writer_->Mark(kSlot, PageIndex(1));
  EXPECT_EQ(log_.Switch(kSlot).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(log_.ReapDeadWriters(), 0u) << "it lives";
  process.Kill();
  const int64_t before = clock_.NowNanos();
  EXPECT_EQ(*log_.Switch(kSlot), SwitchResult::kSwitched);
  EXPECT_LT(clock_.NowNanos() - before, kGracePeriodMaxNanos);
  // What it had marked counts, and that it died is told.
  EXPECT_TRUE(log_.Retired(kSlot)->Test(PageIndex(7)));
  EXPECT_TRUE(log_.Retired(kSlot)->Test(PageIndex(1)));
  EXPECT_EQ(log_.ReapDeadWriters(), 1u);
  writer_->Mark(kSlot, PageIndex(2));
  EXPECT_EQ(*log_.Switch(kSlot), SwitchResult::kSwitched);
}

// Killed between two sections: it may have written a page and not marked it.
TEST_F(DeadWriterTest, OneThatDiesBetweenSectionsIsToldToo) {
  WriterProcess process(log_.fd(), [](DirtyLogWriter& writer) {
    writer.Mark(kSlot, PageIndex(7));
  });
  EXPECT_EQ(log_.ReapDeadWriters(), 0u);
  process.Kill();
  EXPECT_EQ(log_.ReapDeadWriters(), 1u);
  EXPECT_EQ(log_.ReapDeadWriters(), 1u) << "once";
}

TEST_F(DeadWriterTest, OneThatLeavesIsNotDead) {
  {
    const DirtyLogWriter other = *log_.NewWriter();
  }
  EXPECT_EQ(log_.ReapDeadWriters(), 0u);
}

// Records that change hands while the reader looks for the dead: nobody dies.
TEST_F(DeadWriterTest, WhoComesAndGoesIsNotTakenForDead) {
  std::atomic<int> left = 2;
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20000; ++i) {
        DirtyLogWriter writer = *log_.NewWriter();
        writer.Mark(kSlot, PageIndex(1));
      }
      --left;
    });
  }
  while (left > 0) ASSERT_EQ(log_.ReapDeadWriters(), 0u);
  for (std::thread& thread : threads) thread.join();
}

// A child of fork() shares its parent's locks, so nothing tells its end: it is
// waited for, as who holds no lock is, and not taken for dead while it lives.
TEST_F(DeadWriterTest, AForkedChildMarksWithoutALock) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    DirtyLogWriter writer = *log_.NewWriter();
    writer.Mark(kSlot, PageIndex(9));
    ::_exit(0);  // without giving the record back
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(log_.ReapDeadWriters(), 0u);
  EXPECT_EQ(*log_.Switch(kSlot), SwitchResult::kSwitched);
  EXPECT_TRUE(log_.Retired(kSlot)->Test(PageIndex(9)));
}

TEST_F(DeadWriterTest, TheRecordIsFreeAgain) {
  std::vector<DirtyLogWriter> others;
  for (size_t i = 2; i < kMaxDirtyLogWriters; ++i) {
    others.push_back(*log_.NewWriter());
  }
  WriterProcess process(log_.fd(), [](DirtyLogWriter& w) { Peer::Enter(w); });
  EXPECT_FALSE(log_.NewWriter().ok());
  process.Kill();
  EXPECT_FALSE(log_.NewWriter().ok()) << "only the reader tells who is dead";
  EXPECT_EQ(log_.ReapDeadWriters(), 1u);
  EXPECT_TRUE(log_.NewWriter().ok());
}

// The next reader finds the dead writer of the time before.
TEST_F(DeadWriterTest, IsFoundByTheReaderThatTakesOver) {
  WriterProcess process(log_.fd(), [](DirtyLogWriter& w) { Peer::Enter(w); });
  process.Kill();
  DirtyLogSet next =
      *DirtyLogSet::Open(UniqueFd(::dup(log_.fd())), log_.slots(), &clock_);
  EXPECT_TRUE(next.Settle().ok());
  EXPECT_EQ(next.ReapDeadWriters(), 1u);
}

TEST_F(DeadWriterTest, ASupersededLogIsDoneWithWhenItsWritersHaveLeft) {
  EXPECT_FALSE(writer_->superseded());
  log_.Supersede();
  EXPECT_TRUE(writer_->superseded());
  EXPECT_TRUE(writer_->Mark(kSlot, PageIndex(3)));
  EXPECT_TRUE(log_.HasWriters());
  // Who comes now would mark pages that nobody may read any more.
  EXPECT_EQ(log_.NewWriter().status().code(), StatusCode::kFailedPrecondition);
  writer_.reset();
  EXPECT_FALSE(log_.HasWriters());
  EXPECT_EQ(*log_.Switch(kSlot), SwitchResult::kSwitched);
  EXPECT_TRUE(log_.Retired(kSlot)->Test(PageIndex(3)));
}

}  // namespace
}  // namespace postcopy
