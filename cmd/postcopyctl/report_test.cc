#include "cmd/postcopyctl/report.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

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
  EXPECT_THAT(MigrationTable(destination), HasSubstr("fault latency"));
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
