#include "cmd/demo/demo_report.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

DemoReport SomeReport() {
  DemoReport report;
  report.guest = "kvm";
  report.ram = ByteCount(512 << 20);
  report.vcpus = 2;
  report.migration.migration_id = "demo-1";
  report.migration.vm_name = "demo";
  report.migration.state = v1::MIGRATION_STATE_COMPLETED;
  report.migration.rounds = 3;
  report.migration.pages_total = 131072;
  report.migration.pages_zero = 11;
  report.migration.pages_precopied = 22;
  report.migration.pages_stale_at_switchover = 33;
  report.migration.pages_faulted = 44;
  report.migration.pages_background = 55;
  report.migration.downtime_us = 66;
  report.migration.added_downtime_us = 77;
  v1::FaultLatency& latency = report.migration.fault_latency;
  latency.set_count(100);
  latency.set_p50_us(1);
  latency.set_p90_us(2);
  latency.set_p99_us(3);
  latency.set_max_us(4);
  for (uint64_t count : {0, 0, 10, 0, 40}) latency.add_bucket_counts(count);
  report.migration.precopy_bytes_per_second = 88;
  report.migration.total_ms = 99;
  report.verdict = {.checked = true,
                    .steps = 1000,
                    .pages_checked = 130000,
                    .corrupt_pages = 0,
                    .guest_corrupt_pages = 0,
                    .first_corruption = ""};
  return report;
}

TEST(DemoReportTest, JsonHasExactlyTheseKeysInThisOrder) {
  EXPECT_EQ(DemoReportJson(SomeReport()),
            R"({"guest":"kvm","ram_bytes":536870912,"vcpus":2,"rounds":3,)"
            R"("pages_total":131072,"pages_zero":11,"pages_precopied":22,)"
            R"("pages_stale_at_switchover":33,"pages_faulted":44,)"
            R"("pages_background":55,"corrupt_pages":0,"downtime_us":66,)"
            R"("added_downtime_us":77,)"
            R"("fault_latency_us":{"p50":1,"p90":2,"p99":3,"max":4},)"
            R"("precopy_bytes_per_second":88,"total_ms":99})");
}

TEST(DemoReportTest, CorruptPagesAreThoseOfBothCheckers) {
  DemoReport report = SomeReport();
  report.verdict.corrupt_pages = 2;
  report.verdict.guest_corrupt_pages = 3;
  report.verdict.first_corruption = "page 7";
  EXPECT_THAT(DemoReportJson(report), HasSubstr(R"("corrupt_pages":5,)"));
  EXPECT_THAT(DemoReportTable(report), HasSubstr("first: page 7"));
}

TEST(DemoReportTest, TableIsForPeople) {
  std::string table = DemoReportTable(SomeReport());
  EXPECT_THAT(table, HasSubstr("guest          kvm, 512MiB, 2 vCPUs\n"));
  EXPECT_THAT(table, HasSubstr("corrupt pages  none\n"));
  EXPECT_THAT(table, HasSubstr("How long guest threads waited"));
  EXPECT_THAT(table, Not(HasSubstr("Where that time went")));
  DemoReport quiet = SomeReport();
  quiet.migration.fault_latency.Clear();
  EXPECT_THAT(DemoReportTable(quiet), Not(HasSubstr("How long")));
}

TEST(DemoReportTest, TableSaysWhereTheTimeWent) {
  DemoReport report = SomeReport();
  v1::FaultTimes& times = report.migration.fault_times;
  v1::FaultStage& stage = *times.add_stages();
  stage.set_kind(v1::FAULT_STAGE_KIND_ANSWERING);
  stage.set_count(1);
  stage.set_p50_us(10);
  stage.set_p99_us(20);
  stage.set_max_us(30);
  stage.set_total_us(40);
  times.set_stalled_us(50);
  times.add_threads()->set_thread_id(7);
  EXPECT_THAT(DemoReportTable(report),
              HasSubstr("\nWhere that time went:\n"
                        "  answering  p50 10 us, p99 20 us, max 30 us (100.0% "
                        "of the latency)\n"
                        "stalled      50 us with at least one thread waiting\n"
                        "  thread 7   0 faults, 0 us, longest 0 us\n"));
}

TEST(HistogramTest, ShowsTheBucketsBetweenFirstAndLast) {
  EXPECT_EQ(LatencyHistogram(SomeReport().migration.fault_latency, 8),
            "          4 -         8 us |##              10   20.0%\n"
            "          8 -        16 us |                 0    0.0%\n"
            "         16 -        32 us |########        40   80.0%\n");
}

TEST(HistogramTest, TheFirstBucketStartsAtZeroAndNoneIsHidden) {
  v1::FaultLatency latency;
  latency.add_bucket_counts(1);
  latency.add_bucket_counts(1000);
  EXPECT_EQ(LatencyHistogram(latency, 4),
            "          0 -         2 us |#            1    0.1%\n"
            "          2 -         4 us |####     1,000   99.9%\n");
  EXPECT_EQ(LatencyHistogram(v1::FaultLatency(), 4), "");
}

TEST(JudgeTest, OnlyAnUnharmedGuestPasses) {
  EXPECT_TRUE(Judge(SomeReport()).ok());
  DemoReport report = SomeReport();
  report.migration.state = v1::MIGRATION_STATE_POSTCOPY;
  EXPECT_FALSE(Judge(report).ok());
  report = SomeReport();
  report.verdict.guest_corrupt_pages = 1;
  EXPECT_EQ(Judge(report).code(), absl::StatusCode::kDataLoss);
  report = SomeReport();
  report.verdict.checked = false;
  EXPECT_FALSE(Judge(report).ok());
  report = SomeReport();
  report.verdict.pages_checked = 100000;
  EXPECT_FALSE(Judge(report).ok());
}

TEST(VerdictTest, IsReadFromJson) {
  auto verdict = ParseVerdict(
      R"({"checked":true,"steps":9,"pages_written":8,"pages_checked":7,)"
      R"("corrupt_pages":1,"guest_corrupt_pages":2,"first_corruption":"x"})");
  ASSERT_TRUE(verdict.ok()) << verdict.status();
  EXPECT_TRUE(verdict->checked);
  EXPECT_EQ(verdict->steps, 9u);
  EXPECT_EQ(verdict->pages_checked, 7u);
  EXPECT_EQ(verdict->corrupt_pages, 1u);
  EXPECT_EQ(verdict->guest_corrupt_pages, 2u);
  EXPECT_EQ(verdict->first_corruption, "x");
}

TEST(VerdictTest, AnIncompleteOneIsNone) {
  for (const char* json :
       {"", "[]", "{", "{}", R"({"checked":true})",
        // A count that is a string.
        (R"({"checked":true,"steps":"9","pages_checked":7,"corrupt_pages":1,)"
         R"("guest_corrupt_pages":2,"first_corruption":"x"})")}) {
    EXPECT_EQ(ParseVerdict(json).status().code(), absl::StatusCode::kDataLoss)
        << json;
  }
}

}  // namespace
}  // namespace postcopy
