#include "uffd/post_box.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

TEST(PostBoxTest, AtItsLimitAndOnePast) {
  PostBox<int, 4> box;
  EXPECT_EQ(box.Take(), std::nullopt);
  int next = 0, seen = 0;
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(box.Post(next++));
    EXPECT_FALSE(box.Post(-1));
    EXPECT_EQ(box.Take(), seen++);
    EXPECT_TRUE(box.Post(next++));
    EXPECT_FALSE(box.Post(-1));
    for (int i = 0; i < 4; ++i) EXPECT_EQ(box.Take(), seen++);
    EXPECT_EQ(box.Take(), std::nullopt);
  }
}

TEST(PostBoxTest, NothingIsLostOrTwice) {
  constexpr uint64_t kEach = 20'000;
  constexpr uint64_t kThreads = 3;
  struct Value {
    uint64_t thread = 0;
    uint64_t number = 0;
  };
  const auto box = std::make_unique<PostBox<Value, 16>>();
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t number = 0; number < kEach;) {
        if (box->Post({thread, number})) {
          ++number;
        } else {
          std::this_thread::yield();
        }
      }
    });
  }
  std::vector<uint64_t> next(kThreads);
  for (uint64_t taken = 0; taken < kEach * kThreads;) {
    const std::optional<Value> value = box->Take();
    if (!value.has_value()) {
      std::this_thread::yield();
      continue;
    }
    ++taken;
    EXPECT_EQ(value->number, next[value->thread]++);
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(box->Take().has_value());
}

}  // namespace
}  // namespace postcopy
