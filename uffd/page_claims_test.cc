#include "uffd/page_claims.h"

#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

TEST(PageClaimsTest, OneAtATime) {
  const auto claims = std::make_unique<PageClaims>();
  EXPECT_TRUE(claims->TryTake(Pages(100, 10)));
  EXPECT_FALSE(claims->TryTake(Pages(109, 1)));
  EXPECT_FALSE(claims->TryTake(Pages(90, 11)));
  EXPECT_TRUE(claims->TryTake(Pages(110, 1)));
  // What could not be taken whole is not held.
  EXPECT_TRUE(claims->TryTake(Pages(90, 10)));
  claims->Release(Pages(100, 10));
  EXPECT_TRUE(claims->TryTake(Pages(109, 1)));
}

TEST(PageClaimsTest, ARunMayLieInTwoWords) {
  const auto claims = std::make_unique<PageClaims>();
  EXPECT_TRUE(claims->TryTake(Pages(63, 64)));
  EXPECT_FALSE(claims->TryTake(Pages(126, 1)));
  EXPECT_FALSE(claims->TryTake(Pages(63, 1)));
  EXPECT_TRUE(claims->TryTake(Pages(127, 1)));
  EXPECT_TRUE(claims->TryTake(Pages(62, 1)));
  claims->Release(Pages(63, 64));
  EXPECT_TRUE(claims->TryTake(Pages(64, 63)));
}

TEST(PageClaimsTest, TheLastWordIsFollowedByTheFirst) {
  const auto claims = std::make_unique<PageClaims>();
  EXPECT_TRUE(claims->TryTake(Pages(PageClaims::kBits - 1, 2)));
  // Pages that are kBits apart share a bit.
  EXPECT_FALSE(claims->TryTake(Pages(0, 1)));
  EXPECT_FALSE(claims->TryTake(Pages(2 * PageClaims::kBits - 1, 1)));
  EXPECT_TRUE(claims->TryTake(Pages(1, 1)));
}

TEST(PageClaimsTest, AClaimEndsWithItsObject) {
  const auto claims = std::make_unique<PageClaims>();
  {
    PageClaims::Claim claim = claims->Take(Pages(0, 64));
    const PageClaims::Claim moved(std::move(claim));
    EXPECT_FALSE(claims->TryTake(Pages(0, 1)));
  }
  EXPECT_TRUE(claims->TryTake(Pages(0, 1)));
}

// Plain integers, which only the claims guard.
TEST(PageClaimsTest, HoldersExcludeEachOther) {
  constexpr uint64_t kPages = 200;
  const auto claims = std::make_unique<PageClaims>();
  std::vector<uint64_t> counts(kPages);
  std::vector<uint64_t> expected(kPages);
  const auto runs = [](uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<PageRun> drawn;
    for (int i = 0; i < 2000; ++i) {
      const uint64_t first = random() % (kPages - 64);
      drawn.push_back(Pages(first, 1 + random() % 64));
    }
    return drawn;
  };
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    for (const PageRun run : runs(seed)) {
      for (uint64_t i = 0; i < run.count.value(); ++i) {
        ++expected[run.first.value() + i];
      }
    }
    threads.emplace_back([&, seed] {
      for (const PageRun run : runs(seed)) {
        const PageClaims::Claim claim = claims->Take(run);
        for (uint64_t i = 0; i < run.count.value(); ++i) {
          ++counts[run.first.value() + i];
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counts, expected);
}

}  // namespace
}  // namespace postcopy
