#include "uffd/redial_pause.h"

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

TEST(RedialPauseTest, GrowsToItsLimit) {
  RedialPause pause(20, 100);
  EXPECT_EQ(pause.Next(), 20);
  EXPECT_EQ(pause.Next(), 40);
  EXPECT_EQ(pause.Next(), 80);
  EXPECT_EQ(pause.Next(), 100);
  EXPECT_EQ(pause.Next(), 100);
}

TEST(RedialPauseTest, ASessionThatWasOfNoUseDoesNotShortenIt) {
  RedialPause pause(20, 1000);
  pause.Next();
  pause.Next();
  pause.OnSessionEnded(absl::DataLossError("damaged"), /*brought=*/false);
  EXPECT_EQ(pause.Next(), 80);
  pause.OnSessionEnded(absl::DataLossError("damaged"), /*brought=*/true);
  EXPECT_EQ(pause.Next(), 20);
  pause.Next();
  pause.OnSessionEnded(absl::UnavailableError("reset"), /*brought=*/false);
  EXPECT_EQ(pause.Next(), 20);
}

}  // namespace
}  // namespace postcopy
