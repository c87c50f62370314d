#include "uffd/token_bucket.h"

#include "dirtytrack/clock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr ByteCount kBurst{1000};

TEST(TokenBucketTest, NoLimitNeverWaits) {
  TokenBucket bucket(0, kBurst, 0);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(bucket.Take(kBurst, 0), 0);
}

TEST(TokenBucketTest, WaitsForWhatIsLacking) {
  TokenBucket bucket(500, kBurst, 0);
  EXPECT_EQ(bucket.Take(kBurst, 0), 0);
  EXPECT_EQ(bucket.Take(ByteCount(250), 0), kNanosPerSecond / 2);
  EXPECT_EQ(bucket.Take(ByteCount(250), kNanosPerSecond / 2), 0);
  EXPECT_GT(bucket.Take(ByteCount(1), kNanosPerSecond / 2), 0);
}

TEST(TokenBucketTest, IdleTimeBuysOneBurst) {
  TokenBucket bucket(500, kBurst, 0);
  const int64_t later = 3600 * kNanosPerSecond;
  EXPECT_EQ(bucket.Take(kBurst, later), 0);
  EXPECT_EQ(bucket.Take(kBurst, later), 2 * kNanosPerSecond);
}

TEST(TokenBucketTest, RateChangesFromNowOn) {
  TokenBucket bucket(1000, kBurst, 0);
  EXPECT_EQ(bucket.Take(kBurst, 0), 0);
  bucket.SetRate(100, kNanosPerSecond / 2);  // 500 had accrued
  EXPECT_EQ(bucket.Take(kBurst, kNanosPerSecond / 2), 5 * kNanosPerSecond);
  bucket.SetRate(0, kNanosPerSecond);
  EXPECT_EQ(bucket.Take(kBurst, kNanosPerSecond), 0);
}

TEST(TokenBucketTest, RefundsUpToTheBurst) {
  TokenBucket bucket(1, kBurst, 0);
  EXPECT_EQ(bucket.Take(kBurst, 0), 0);
  bucket.Refund(ByteCount(700));
  EXPECT_EQ(bucket.Take(ByteCount(700), 0), 0);
  bucket.Refund(ByteCount(5000));
  EXPECT_EQ(bucket.Take(kBurst, 0), 0);
  EXPECT_GT(bucket.Take(ByteCount(1), 0), 0);
}

TEST(TokenBucketTest, TheSlowestRateDoesNotOverflow) {
  TokenBucket bucket(1, ByteCount(uint64_t{1} << 62), 0);
  EXPECT_EQ(bucket.Take(ByteCount(uint64_t{1} << 62), 0), 0);
  EXPECT_GT(bucket.Take(ByteCount(uint64_t{1} << 62), 0), 0);
}

}  // namespace
}  // namespace postcopy
