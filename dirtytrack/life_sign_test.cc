#include "dirtytrack/life_sign.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <thread>

namespace postcopy {
namespace {

TEST(LifeSignTest, NobodyAskedIsAlive) {
  LifeSign life;
  int wakes = 0;
  EXPECT_TRUE(life.Ask([&] { ++wakes; }));
  EXPECT_EQ(wakes, 1);
}

TEST(LifeSignTest, WhoDoesNotAnswerIsStuckUntilItDoes) {
  LifeSign life;
  int wakes = 0;
  const auto wake = [&] { ++wakes; };
  EXPECT_TRUE(life.Ask(wake));
  EXPECT_FALSE(life.Ask(wake));
  EXPECT_FALSE(life.Ask(wake));
  EXPECT_EQ(wakes, 1) << "the question still stands";
  life.Answer();
  EXPECT_TRUE(life.Ask(wake));
  EXPECT_EQ(wakes, 2);
  EXPECT_FALSE(life.Ask(wake));
}

TEST(LifeSignTest, AnAnswerTooManyAnswersNothingLater) {
  LifeSign life;
  life.Answer();
  life.Answer();
  EXPECT_TRUE(life.Ask([] {}));
  EXPECT_FALSE(life.Ask([] {}));
}

TEST(LifeSignTest, AThreadThatComesRoundAnswersEachQuestion) {
  LifeSign life;
  const int wake = ::eventfd(0, EFD_CLOEXEC);
  constexpr int kQuestions = 1000;
  std::thread thread([&] {
    eventfd_t woken = 0;
    for (int answers = 0; answers < kQuestions;
         answers += static_cast<int>(woken)) {
      ::eventfd_read(wake, &woken);
      life.Answer();
    }
  });
  for (int questions = 0; questions < kQuestions;) {
    if (life.Ask([&] { ::eventfd_write(wake, 1); })) {
      ++questions;
    } else {
      std::this_thread::yield();
    }
  }
  thread.join();
  ::close(wake);
}

}  // namespace
}  // namespace postcopy
