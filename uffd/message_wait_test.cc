#include "uffd/message_wait.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"
#include "uffd/kernel_guest.h"

namespace postcopy {
namespace {

// An eventfd stands for the userfaultfd: it is readable or not.
class MessageWaitTest : public testing::Test {
 protected:
  void Send() const { ::eventfd_write(uffd_.get(), 1); }
  void Read() const {
    eventfd_t ignored = 0;
    ::eventfd_read(uffd_.get(), &ignored);
  }

  const UniqueFd uffd_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  const UniqueFd wake_fd_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  const std::unique_ptr<MessageWait> wait_ =
      *MessageWait::Create(uffd_.get(), wake_fd_.get());
};

TEST_F(MessageWaitTest, AMessageWakesWhoListens) {
  Send();
  EXPECT_FALSE(wait_->Wait(0).messages);
  ASSERT_TRUE(wait_->Listen(true).ok());
  EXPECT_TRUE(wait_->Wait(-1).messages);
  EXPECT_TRUE(wait_->Wait(-1).messages);  // until it is read
  Read();
  EXPECT_FALSE(wait_->Wait(0).messages);
  Send();
  ASSERT_TRUE(wait_->Listen(false).ok());
  EXPECT_FALSE(wait_->Wait(0).messages);
}

TEST_F(MessageWaitTest, BeginsToListenWhileItWaits) {
  Send();
  std::thread waiting([this] { EXPECT_TRUE(wait_->Wait(-1).messages); });
  EXPECT_TRUE(wait_->Listen(true).ok());
  waiting.join();
}

TEST_F(MessageWaitTest, IsWokenWhetherItListensOrNot) {
  ::eventfd_write(wake_fd_.get(), 1);
  for (const bool listens : {false, true}) {
    ASSERT_TRUE(wait_->Listen(listens).ok());
    const MessageWait::Woken woken = wait_->Wait(-1);
    EXPECT_TRUE(woken.wake_fd);
    EXPECT_FALSE(woken.messages);
    EXPECT_TRUE(woken.status.ok());
  }
}

TEST_F(MessageWaitTest, WhoStandsInIsWokenByMessagesAlone) {
  ::eventfd_write(wake_fd_.get(), 1);
  EXPECT_FALSE(wait_->StandIn(0).messages);
  Send();
  EXPECT_TRUE(wait_->StandIn(-1).messages);
}

TEST_F(MessageWaitTest, WithoutADescriptorItSaysSo) {
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none = {.rlim_cur = 0, .rlim_max = before.rlim_max};
  const int uffd = uffd_.get();
  const int wake_fd = wake_fd_.get();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto wait = MessageWait::Create(uffd, wake_fd);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(absl::IsResourceExhausted(wait.status()));
}

TEST(KernelMessageWaitTest, TellsThatAUserfaultfdIsBlocking) {
  std::string reason;
  const auto guest =
      KernelGuest::Create(std::vector<PageCount>{PageCount(1)}, &reason);
  if (guest == nullptr) GTEST_SKIP() << reason;
  const auto ops = guest->TakeOps();
  const UniqueFd wake_fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const auto wait = *MessageWait::Create(ops->poll_fd(), wake_fd.get());
  EXPECT_TRUE(wait->Wait(0).status.ok());
  EXPECT_TRUE(wait->StandIn(0).status.ok());
  ASSERT_EQ(::fcntl(ops->poll_fd(), F_SETFL, O_RDWR), 0);
  EXPECT_TRUE(absl::IsInternal(wait->StandIn(-1).status));
  // And who is told of messages, with the next one.
  const auto again = *MessageWait::Create(ops->poll_fd(), wake_fd.get());
  EXPECT_TRUE(absl::IsInternal(again->Wait(-1).status));
}

}  // namespace
}  // namespace postcopy
