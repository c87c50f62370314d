#include "cmd/demovm/write_pacer.h"

#include "gtest/gtest.h"

namespace postcopy::demovm {
namespace {

using std::chrono::milliseconds;

constexpr double kPagePerMilli = 1000.0 * kGuestPageBytes;  // bytes/s
const WritePacer::Clock::time_point kNow{std::chrono::hours(1)};

TEST(WritePacerTest, WritesTakeTheirTime) {
  WritePacer pacer(kPagePerMilli);
  pacer.GoOnAt(1000, kNow);
  const auto due = pacer.GoOnAt(1050, kNow);
  // Up to 10 ms of it may have been caught up.
  EXPECT_EQ(due, kNow + milliseconds(40));
  EXPECT_EQ(pacer.GoOnAt(1060, due), due + milliseconds(10));
}

TEST(WritePacerTest, WhatWasDoneElsewhereDoesNotCount) {
  WritePacer pacer(kPagePerMilli);
  EXPECT_LE(pacer.GoOnAt(1'000'000'000, kNow), kNow);
}

TEST(WritePacerTest, LittleIsCaughtUp) {
  WritePacer pacer(kPagePerMilli);
  pacer.GoOnAt(0, kNow);
  const auto later = kNow + std::chrono::seconds(5);
  EXPECT_EQ(pacer.GoOnAt(100, later), later + milliseconds(90));
}

TEST(WritePacerTest, ZeroIsNoLimit) {
  WritePacer pacer(0);
  pacer.GoOnAt(0, kNow);
  EXPECT_LE(pacer.GoOnAt(1'000'000'000, kNow), kNow);
}

}  // namespace
}  // namespace postcopy::demovm
