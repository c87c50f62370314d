#include "cmd/daemon/observation_flags.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/flags/reflection.h"
#include "absl/status/status.h"

namespace postcopy {
namespace {

TEST(ObservationFlagsTest, LogLevelsAreNames) {
  EXPECT_EQ(LogLevelFlag(), LogSeverity::kInfo);
  EXPECT_FALSE(ChannelzFlag());
  const FlagCheck check = LogLevelCheck();
  EXPECT_TRUE(check.check().ok());
  absl::FlagSaver saver;
  std::string error;
  absl::CommandLineFlag& flag = *absl::FindCommandLineFlag("log_level");
  ASSERT_TRUE(flag.ParseFrom("loud", &error));
  EXPECT_TRUE(absl::IsInvalidArgument(check.check())) << check.check();
  ASSERT_TRUE(flag.ParseFrom("error", &error));
  EXPECT_EQ(LogLevelFlag(), LogSeverity::kError);
}

TEST(ObservationFlagsTest, MetricsMayBeNowhere) {
  EXPECT_TRUE(CheckMetricsFlag("").ok());
  EXPECT_TRUE(CheckMetricsFlag("127.0.0.1:0").ok());
  EXPECT_EQ(CheckMetricsFlag("7402").message(),
            "--metrics_address=7402 must be host:port, or empty for none");
}

}  // namespace
}  // namespace postcopy
