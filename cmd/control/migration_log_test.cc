#include "cmd/control/migration_log.h"

#include <gtest/gtest.h>

#include "cmd/log/captured_log.h"
#include "dirtytrack/simulated_clock.h"

namespace postcopy {
namespace {

v1::CreateMigrationRequest Request() {
  v1::CreateMigrationRequest request;
  request.set_migration_id("m");
  request.set_vm_name("vm");
  request.set_trace_id("4bf92f3577b34da6a3ce929d0e0e4736");
  return request;
}

TEST(MigrationLogTest, TellsStateMessageAndIds) {
  SimulatedClock clock;
  clock.Advance(kNanosPerSecond);
  CapturedLog captured;
  MigrationLog log(&captured, Request(), &clock);
  log.Changed(v1::MIGRATION_STATE_PRECOPY, "");
  log.Changed(v1::MIGRATION_STATE_PAUSED, "the source cannot be reached");
  log.Changed(v1::MIGRATION_STATE_FAILED, "the VMM is gone");
  const std::vector<LogRecord> records = captured.records();
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[0].sentence, "migration is PRECOPY");
  EXPECT_EQ(records[0].severity, LogSeverity::kInfo);
  EXPECT_EQ(records[1].sentence,
            "migration is PAUSED: the source cannot be reached");
  EXPECT_EQ(records[1].severity, LogSeverity::kWarning);
  EXPECT_EQ(records[2].severity, LogSeverity::kError);
  EXPECT_EQ(FieldOf(records[1], "MIGRATION_ID"), "m");
  EXPECT_EQ(FieldOf(records[1], "VM_NAME"), "vm");
  EXPECT_EQ(FieldOf(records[1], "STATE"), "PAUSED");
  EXPECT_EQ(FieldOf(records[1], "TRACE_ID"),
            "4bf92f3577b34da6a3ce929d0e0e4736");
}

// A peer that comes and goes cannot fill the disk, nor hide the end.
TEST(MigrationLogTest, ToAndFroIsLimitedAndTheEndIsAlwaysTold) {
  SimulatedClock clock;
  clock.Advance(kNanosPerSecond);
  CapturedLog captured;
  MigrationLog log(&captured, Request(), &clock);
  for (int i = 0; i < kMigrationLinesPerSecond; ++i) {
    log.Changed(v1::MIGRATION_STATE_PAUSED, "");
  }
  EXPECT_EQ(captured.records().size(), size_t{kMigrationLinesPerSecond});
  log.Changed(v1::MIGRATION_STATE_RECOVERING, "");
  EXPECT_EQ(captured.records().size(), size_t{kMigrationLinesPerSecond});
  log.Changed(v1::MIGRATION_STATE_COMPLETED, "every page is here");
  EXPECT_EQ(captured.records().back().sentence,
            "migration is COMPLETED: every page is here");
}

TEST(MigrationLogTest, NobodyToTellIsFine) {
  SimulatedClock clock;
  MigrationLog(nullptr, Request(), &clock)
      .Changed(v1::MIGRATION_STATE_FAILED, "");
}

}  // namespace
}  // namespace postcopy
