#include "dirtytrack/liveness_locks.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dirtytrack/memfd.h"
#include "dirtytrack/types.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

class LivenessLocksTest : public testing::Test {
 protected:
  const UniqueFd file_ = *CreateMemfd("locks", ByteCount(kPageSize), 0);
};

TEST_F(LivenessLocksTest, ObjectsExcludeEachOther) {
  const LivenessLocks one = *LivenessLocks::Open(file_.get());
  const LivenessLocks other = *LivenessLocks::Open(file_.get());
  EXPECT_TRUE(one.TryLock(64));
  EXPECT_TRUE(one.TryLock(64)) << "its own";
  EXPECT_FALSE(other.TryLock(64));
  EXPECT_TRUE(other.TryLock(65));
  one.Unlock(64);
  EXPECT_TRUE(other.TryLock(64));
  EXPECT_FALSE(one.TryLock(64));
}

TEST_F(LivenessLocksTest, AProcessThatIsKilledLosesThem) {
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto locks = LivenessLocks::Open(file_.get());
    const char ok = locks.ok() && locks->TryLock(0) ? 'y' : 'n';
    if (::write(ready[1], &ok, 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char ok = 0;
  ASSERT_EQ(::read(ready[0], &ok, 1), 1);
  EXPECT_EQ(ok, 'y');
  const LivenessLocks mine = *LivenessLocks::Open(file_.get());
  EXPECT_FALSE(mine.TryLock(0));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(mine.TryLock(0));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(LivenessLocksTest, WhatIsNotOpenCannotBeReopened) {
  EXPECT_EQ(LivenessLocks::Open(-1).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace postcopy
