#include "cmd/log/log.h"

#include <gtest/gtest.h>

#include "cmd/log/captured_log.h"
#include "cmd/log/limited_log.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/simulated_clock.h"

namespace postcopy {
namespace {

TEST(LogSeverityTest, HasNamesThatParse) {
  for (const LogSeverity severity :
       {LogSeverity::kError, LogSeverity::kWarning, LogSeverity::kNotice,
        LogSeverity::kInfo, LogSeverity::kDebug}) {
    EXPECT_EQ(*ParseLogSeverity(LogSeverityName(severity)), severity);
  }
  EXPECT_EQ(ParseLogSeverity("loud").status().message(),
            "--log_level=loud must be error, warning, notice, info or debug");
}

TEST(LogTest, NobodyToTellIsFine) {
  WriteTo(nullptr, LogSeverity::kError, "nobody reads this");
  SimulatedClock clock;
  LimitedLog(nullptr, 1, &clock).Write({});
}

// At the limit, one past it, and the next second, which tells how many there
// were.
TEST(LimitedLogTest, PassesSoManyASecondAndCountsTheRest) {
  SimulatedClock clock;
  clock.Advance(kNanosPerSecond);
  CapturedLog log;
  LimitedLog limited(&log, kPeerLinesPerSecond, &clock);
  for (int i = 0; i < kPeerLinesPerSecond; ++i) {
    limited.Write({LogSeverity::kInfo, "again", {}});
  }
  EXPECT_EQ(log.records().size(), size_t{kPeerLinesPerSecond});
  limited.Write({LogSeverity::kInfo, "one too many", {}});
  limited.Write({LogSeverity::kInfo, "two too many", {}});
  clock.Advance(kNanosPerSecond - 1);
  limited.Write({LogSeverity::kInfo, "three too many", {}});
  EXPECT_EQ(log.records().size(), size_t{kPeerLinesPerSecond});

  clock.Advance(1);
  limited.Write({LogSeverity::kInfo, "the next second", {{"A", "b"}}});
  ASSERT_EQ(log.records().size(), size_t{kPeerLinesPerSecond} + 1);
  EXPECT_EQ(log.records().back().sentence, "the next second");
  EXPECT_EQ(FieldOf(log.records().back(), "A"), "b");
  EXPECT_EQ(FieldOf(log.records().back(), "SUPPRESSED"), "3");
  limited.Write({LogSeverity::kInfo, "and another", {}});
  EXPECT_EQ(FieldOf(log.records().back(), "SUPPRESSED"), "") << "told once";
}

}  // namespace
}  // namespace postcopy
