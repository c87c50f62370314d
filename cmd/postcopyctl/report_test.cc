#include "cmd/postcopyctl/report.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/postcopyctl/fault_times.h"
#include "gmock/gmock.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

google::protobuf::Struct Parse(const std::string& json) {
  google::protobuf::Struct result;
  auto status = google::protobuf::util::JsonStringToMessage(json, &result);
  EXPECT_TRUE(status.ok()) << status.ToString() << "\n" << json;
  return result;
}

MigrateOptions SomeOptions() {
  MigrateOptions options;
  options.migration_id = "vm-1";
  options.vm_name = "vm";
  options.policy = v1::MIGRATION_POLICY_PRECOPY_ONLY;
  return options;
}

// Every counter differs between the sides, so that the wrong one shows.
MigrateResult SomeResult() {
  MigrateResult result;
  v1::Migration& source = result.source;
  source.set_state(v1::MIGRATION_STATE_COMPLETED);
  source.set_rounds(3);
  source.mutable_pages()->set_total(1000);
  source.mutable_pages()->set_zero(10);
  source.mutable_pages()->set_precopied(900);
  source.mutable_pages()->set_stale_at_switch_over(80);
  source.mutable_pages()->set_faulted(1);
  source.mutable_pages()->set_background(2);
  source.mutable_switch_over()->set_downtime_us(5000);
  source.mutable_switch_over()->set_added_downtime_us(3000);
  source.set_precopy_bytes_per_second(123456789);
  v1::Migration& destination = result.destination;
  destination.set_state(v1::MIGRATION_STATE_COMPLETED);
  destination.set_rounds(99);
  destination.mutable_pages()->set_total(1000);
  destination.mutable_pages()->set_zero(98);
  destination.mutable_pages()->set_precopied(97);
  destination.mutable_pages()->set_faulted(30);
  destination.mutable_pages()->set_background(50);
  v1::FaultLatency* latency = destination.mutable_fault_latency();
  latency->set_count(30);
  latency->set_p50_us(100);
  latency->set_p90_us(200);
  latency->set_p99_us(300);
  latency->set_max_us(400);
  result.total = absl::Milliseconds(4321);
  return result;
}

TEST(ReportTest, JsonHasExactlyTheseKeysAndValues) {
  EXPECT_EQ(
      ReportJson(MergeReport(SomeOptions(), SomeResult())),
      R"({"migration_id":"vm-1","vm":"vm","state":"COMPLETED",)"
      R"("policy":"precopy-only","rounds":3,"pages_total":1000,)"
      R"("pages_zero":10,"pages_precopied":900,)"
      R"("pages_stale_at_switchover":80,"pages_faulted":30,)"
      R"("pages_background":50,"downtime_us":5000,"added_downtime_us":3000,)"
      R"("fault_latency_us":{"p50":100,"p90":200,"p99":300,"max":400},)"
      R"("precopy_bytes_per_second":123456789,"total_ms":4321})");
}

TEST(ReportTest, JsonNumbersAreNumbers) {
  google::protobuf::Struct json =
      Parse(ReportJson(MergeReport(SomeOptions(), SomeResult())));
  EXPECT_EQ(json.fields().size(), 16u);
  EXPECT_EQ(json.fields().at("pages_total").number_value(), 1000);
  EXPECT_EQ(json.fields()
                .at("fault_latency_us")
                .struct_value()
                .fields()
                .at("p99")
                .number_value(),
            300);
}

TEST(ReportTest, AnEmptyResultIsStillJson) {
  google::protobuf::Struct json =
      Parse(ReportJson(MergeReport(SomeOptions(), MigrateResult())));
  EXPECT_EQ(json.fields().at("state").string_value(), "UNSPECIFIED");
}

TEST(ReportTest, TableIsForPeople) {
  std::string table = ReportTable(MergeReport(SomeOptions(), SomeResult()));
  EXPECT_THAT(table, HasSubstr("state                   COMPLETED\n"));
  EXPECT_THAT(table, HasSubstr("  stale at switch-over  80\n"));
  EXPECT_THAT(table,
              HasSubstr("p50 100 us, p90 200 us, p99 300 us, max 400 us\n"));
  EXPECT_THAT(table, HasSubstr("5,000 us, of which 3,000 us by this service"));
  EXPECT_THAT(table, HasSubstr("total                   4321.0 ms\n"));
}

TEST(MigrationJsonTest, ShowsEverythingOfOneSide) {
  v1::Migration migration = SomeResult().destination;
  migration.set_role(v1::ROLE_DESTINATION);
  migration.set_migration_id("vm-1");
  migration.set_status_message("say \"why\"\n");
  migration.mutable_dirty_tracking()->set_kind(
      v1::DIRTY_TRACKING_KIND_DIRTY_LOG);
  migration.mutable_create_time()->set_seconds(1700000000);
  migration.mutable_fault_latency()->add_bucket_counts(7);
  google::protobuf::Struct json = Parse(MigrationJson(migration));
  const auto& fields = json.fields();
  EXPECT_EQ(fields.at("role").string_value(), "destination");
  EXPECT_EQ(fields.at("status_message").string_value(), "say \"why\"\n");
  EXPECT_EQ(fields.at("create_time").string_value(),
            "2023-11-14T22:13:20.000Z");
  EXPECT_EQ(fields.at("state_time").string_value(), "");
  EXPECT_EQ(
      fields.at("pages").struct_value().fields().at("faulted").number_value(),
      30);
  EXPECT_EQ(fields.at("fault_latency_us")
                .struct_value()
                .fields()
                .at("buckets")
                .list_value()
                .values(0)
                .number_value(),
            7);
  EXPECT_EQ(fields.at("dirty_tracking")
                .struct_value()
                .fields()
                .at("kind")
                .string_value(),
            "dirty-log");
  EXPECT_FALSE(fields.at("advice")
                   .struct_value()
                   .fields()
                   .at("recommended")
                   .bool_value());
}

TEST(MigrationTableTest, ShowsWhatTheSideKnows) {
  v1::Migration source = SomeResult().source;
  source.set_role(v1::ROLE_SOURCE);
  source.mutable_advice()->set_reason("rounds still shrink");
  source.mutable_dirty_tracking()->set_kind(
      v1::DIRTY_TRACKING_KIND_PAGEMAP_SCAN);
  source.mutable_dirty_tracking()->set_reason("a pagemap came");
  std::string table = MigrationTable(source);
  EXPECT_THAT(table, HasSubstr("advice        wait: rounds still shrink\n"));
  EXPECT_THAT(table, HasSubstr("tracking      pagemap-scan: a pagemap came\n"));
  EXPECT_THAT(table, HasSubstr("downtime"));
  v1::Migration destination = SomeResult().destination;
  destination.set_role(v1::ROLE_DESTINATION);
  destination.set_minor_faults(12345);
  destination.set_mapped_ahead_pages(678);
  table = MigrationTable(destination);
  EXPECT_THAT(table, HasSubstr("fault latency"));
  EXPECT_THAT(table, HasSubstr("minor faults   12,345\n"));
  EXPECT_THAT(table, HasSubstr("mapped ahead   678\n"));
  const google::protobuf::Struct json = Parse(MigrationJson(destination));
  EXPECT_EQ(json.fields().at("minor_faults").number_value(), 12345);
  EXPECT_EQ(json.fields().at("mapped_ahead_pages").number_value(), 678);
}

v1::FaultTimes SomeFaultTimes() {
  v1::FaultTimes times;
  uint64_t number = 1;
  for (const v1::FaultStageKind kind :
       {v1::FAULT_STAGE_KIND_READING, v1::FAULT_STAGE_KIND_ASKING,
        v1::FAULT_STAGE_KIND_ANSWERING, v1::FAULT_STAGE_KIND_INSTALLING}) {
    v1::FaultStage& stage = *times.add_stages();
    stage.set_kind(kind);
    stage.set_count(30);
    stage.set_p50_us(number++);
    stage.set_p90_us(number++);
    stage.set_p99_us(number++);
    stage.set_max_us(number++);
    stage.set_total_us(100 * number++);
  }
  times.set_stalled_us(12345);
  for (uint32_t i = 1; i <= kThreadsShown + 1; ++i) {
    v1::FaultingThread& thread = *times.add_threads();
    thread.set_thread_id(1000 + i);
    thread.set_faults(i);
    thread.set_wait_us(uint64_t{i} * 100);
    thread.set_wait_max_us(uint64_t{i} * 10);
  }
  return times;
}

using Row = std::pair<std::string, std::string>;

// What is not known is said to people, and left out for scripts.
TEST(EstimateTest, IsShownAsFarAsItIsKnown) {
  v1::Migration migration = SomeResult().source;
  migration.set_role(v1::ROLE_SOURCE);
  migration.set_switch_over_mode(v1::SWITCH_OVER_MODE_AUTO);
  EXPECT_THAT(MigrationTable(migration), Not(HasSubstr("expected")));
  v1::SwitchOverEstimate& estimate = *migration.mutable_estimate();
  estimate.set_verdict(v1::SWITCH_OVER_VERDICT_NOT_CONVERGING);
  estimate.set_dirty_bytes_per_second(410 << 20);
  estimate.set_unsent_bytes(1 << 30);
  estimate.set_stall_ms(0);
  const std::string table = MigrationTable(migration);
  EXPECT_THAT(table, HasSubstr("to send       1.0 GiB\n"));
  EXPECT_THAT(table, HasSubstr("  written     410.0 MiB/s\n"));
  EXPECT_THAT(table, HasSubstr("  sent        not known\n"));
  EXPECT_THAT(table, HasSubstr("  precopy     not known\n"));
  EXPECT_THAT(table, HasSubstr("  stall       0 us\n"));
  const google::protobuf::Struct json = Parse(MigrationJson(migration));
  EXPECT_EQ(json.fields().at("switch_over_mode").string_value(), "auto");
  const auto& known = json.fields().at("estimate").struct_value().fields();
  EXPECT_EQ(known.at("verdict").string_value(), "not-converging");
  EXPECT_EQ(known.at("dirty_bytes_per_second").number_value(), 410 << 20);
  EXPECT_EQ(known.at("stall_ms").number_value(), 0);
  EXPECT_FALSE(known.contains("downtime_us"));
  EXPECT_FALSE(known.contains("bandwidth_bytes_per_second"));
}

TEST(StateChangesTest, AreInJson) {
  v1::Migration migration = SomeResult().destination;
  v1::StateChange& change = *migration.add_state_changes();
  change.set_number(7);
  change.set_state(v1::MIGRATION_STATE_RECOVERING);
  change.set_status_message("reset");
  const google::protobuf::Struct json = Parse(MigrationJson(migration));
  const auto& changes = json.fields().at("state_changes").list_value();
  ASSERT_EQ(changes.values_size(), 1);
  const auto& fields = changes.values(0).struct_value().fields();
  EXPECT_EQ(fields.at("number").number_value(), 7);
  EXPECT_EQ(fields.at("state").string_value(), "RECOVERING");
}

TEST(FaultTimesTest, RowsAreTheStagesAndWhoWaitedLongest) {
  const auto rows = FaultTimesRows(SomeFaultTimes());
  ASSERT_EQ(rows.size(), 4 + 1 + kThreadsShown + 1);
  EXPECT_EQ(rows[0], Row("  reading",
                         "p50 1 us, p99 3 us, max 4 us (before the latency)"));
  EXPECT_EQ(
      rows[1],
      Row("  asking", "p50 6 us, p99 8 us, max 9 us (22.2% of the latency)"));
  EXPECT_EQ(rows[2],
            Row("  answering",
                "p50 11 us, p99 13 us, max 14 us (33.3% of the latency)"));
  EXPECT_EQ(rows[3],
            Row("  installing",
                "p50 16 us, p99 18 us, max 19 us (44.4% of the latency)"));
  EXPECT_EQ(rows[4],
            Row("stalled", "12.3 ms with at least one thread waiting"));
  EXPECT_EQ(rows[5], Row("  thread 1009", "9 faults, 900 us, longest 90 us"));
  EXPECT_EQ(rows.back(), Row("  more threads", "1"));
}

TEST(FaultTimesTest, RowsAtTheLimitHaveNoMore) {
  v1::FaultTimes times = SomeFaultTimes();
  times.mutable_threads()->RemoveLast();
  EXPECT_EQ(FaultTimesRows(times).back().first, "  thread 1001");
  times.mutable_other_threads()->set_faults(7);
  EXPECT_EQ(FaultTimesRows(times).back(),
            Row("  other threads", "7 faults, 0 us, longest 0 us"));
}

TEST(FaultTimesTest, NobodyWaitedAndNobodyKnows) {
  EXPECT_TRUE(FaultTimesRows(v1::FaultTimes()).empty());
  EXPECT_EQ(FaultStagesJson(v1::FaultTimes()).ToString(), "{}");
  // Somebody waits, and nothing has come yet.
  v1::FaultTimes times;
  times.set_stalled_us(5);
  times.add_stages()->set_kind(v1::FAULT_STAGE_KIND_READING);
  ASSERT_EQ(FaultTimesRows(times).size(), 1u);
  EXPECT_EQ(FaultTimesRows(times)[0].first, "stalled");
}

TEST(FaultTimesTest, AKindOfTheFutureIsLeftOut) {
  v1::FaultTimes times = SomeFaultTimes();
  times.mutable_stages(1)->set_kind(
      // NOLINTNEXTLINE(*EnumCastOutOfRange): a newer daemon may well send it.
      static_cast<v1::FaultStageKind>(17));
  EXPECT_EQ(FaultTimesRows(times)[1].first, "  answering");
  EXPECT_EQ(FaultStagesJson(times).ToString(),
            R"({"reading":{"count":30,"p50":1,"p90":2,"p99":3,"max":4,)"
            R"("total":500},"answering":{"count":30,"p50":11,"p90":12,)"
            R"("p99":13,"max":14,"total":1500},"installing":{"count":30,)"
            R"("p50":16,"p90":17,"p99":18,"max":19,"total":2000}})");
}

TEST(FaultTimesTest, OneSideShowsThemToPeopleAndScripts) {
  v1::Migration migration = SomeResult().destination;
  migration.set_role(v1::ROLE_DESTINATION);
  *migration.mutable_fault_times() = SomeFaultTimes();
  migration.mutable_fault_times()->mutable_other_threads()->set_wait_us(77);
  EXPECT_THAT(MigrationTable(migration),
              HasSubstr("  thread 1009    9 faults, 900 us, longest 90 us\n"));
  const google::protobuf::Struct json = Parse(MigrationJson(migration));
  const auto& fields = json.fields();
  EXPECT_EQ(fields.at("stalled_us").number_value(), 12345);
  EXPECT_EQ(fields.at("fault_stages_us")
                .struct_value()
                .fields()
                .at("answering")
                .struct_value()
                .fields()
                .at("p90")
                .number_value(),
            12);
  const auto& threads = fields.at("faulting_threads").list_value();
  ASSERT_EQ(threads.values_size(), static_cast<int>(kThreadsShown) + 1);
  EXPECT_EQ(
      threads.values(0).struct_value().fields().at("thread_id").number_value(),
      1001);
  EXPECT_EQ(fields.at("other_faulting_threads")
                .struct_value()
                .fields()
                .at("wait_us")
                .number_value(),
            77);
}

TEST(FaultTimesTest, AReportHasThoseOfTheDestination) {
  MigrateResult result = SomeResult();
  result.source.mutable_fault_times()->set_stalled_us(1);
  result.destination.mutable_fault_times()->set_stalled_us(2);
  EXPECT_EQ(MergeReport(SomeOptions(), result).fault_times.stalled_us(), 2u);
}

TEST(MigrationListTest, HasAlignedColumns) {
  v1::Migration migration = SomeResult().source;
  migration.set_migration_id("a-long-migration-id");
  migration.set_vm_name("vm");
  migration.set_role(v1::ROLE_SOURCE);
  EXPECT_EQ(MigrationListTable({migration}),
            "MIGRATION            VM  SIDE    STATE      POLICY"
            "                 ROUNDS  REMAINING\n"
            "a-long-migration-id  vm  source  COMPLETED  precopy-then-postcopy"
            "  3       0\n");
  EXPECT_THAT(MigrationListTable({}), HasSubstr("MIGRATION"));
}

}  // namespace
}  // namespace postcopy
