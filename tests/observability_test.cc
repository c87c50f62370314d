// What an operator sees of a migration: the metrics, the log and the health of
// both daemons.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cmd/log/captured_log.h"
#include "cmd/metrics/metric_families.h"
#include "tests/two_hosts.h"

namespace postcopy {
namespace {

constexpr char kVm[] = "guest";
constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";

#define ASSERT_OK(expression)                        \
  do {                                               \
    const absl::Status& status_ = (expression);      \
    ASSERT_TRUE(status_.ok()) << status_.ToString(); \
  } while (false)

// "name{kind=faulted,role=source}" to value; of histograms and summaries the
// count.
using Values = std::map<std::string, double>;

template <typename Daemon>
Values Scrape(const Daemon& daemon) {
  MetricFamilies families;
  daemon.AddMetrics(families);
  Values values;
  for (const auto& family : families.Take()) {
    for (const auto& metric : family.metric) {
      std::string name = family.name + "{";
      for (const auto& label : metric.label) {
        if (name.back() != '{') name += ',';
        name += label.name + "=" + label.value;
      }
      values[name + "}"] = metric.counter.value + metric.gauge.value +
                           static_cast<double>(metric.histogram.sample_count) +
                           static_cast<double>(metric.summary.sample_count);
    }
  }
  return values;
}

std::vector<std::string> StatesIn(const std::vector<LogRecord>& records) {
  std::vector<std::string> states;
  for (const LogRecord& record : records) {
    const std::string state = FieldOf(record, kStateField);
    if (!state.empty() && (states.empty() || states.back() != state)) {
      states.push_back(state);
    }
  }
  return states;
}

class ObservabilityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string why = WhyNoUserfaultfd();
    if (!why.empty()) GTEST_SKIP() << "no userfaultfd: " << why;
    auto hosts = TwoHosts::Create(
        {.source_log = &source_log_, .destination_log = &destination_log_});
    ASSERT_OK(hosts.status());
    hosts_ = *std::move(hosts);
    ASSERT_OK(hosts_->AttachBoth(kVm));
  }

  // A whole migration with the trace ids given, until both sides are done.
  void Migrate(const std::string& source_trace,
               const std::string& destination_trace) {
    v1::CreateMigrationRequest source = hosts_->SourceRequest(kVm);
    source.set_trace_id(source_trace);
    ASSERT_OK(hosts_->CreateAtSource(source).status());
    v1::CreateMigrationRequest destination = hosts_->DestinationRequest(kVm);
    destination.set_trace_id(destination_trace);
    ASSERT_OK(hosts_->CreateAtDestination(destination).status());
    ASSERT_OK(hosts_->AwaitSource(
        kVm, [](const v1::Migration& m) { return m.advice().recommended(); }));
    ASSERT_OK(hosts_->SwitchOver(kVm));
    ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
    ASSERT_OK(hosts_->AwaitSource(kVm, MigrationHasEnded));
    ASSERT_EQ(hosts_->AtDestination(kVm).state(),
              v1::MIGRATION_STATE_COMPLETED);
  }

  CapturedLog source_log_;
  CapturedLog destination_log_;
  std::unique_ptr<TwoHosts> hosts_;
};

TEST_F(ObservabilityTest, MetricsTellWhatTheMigrationTells) {
  ASSERT_NO_FATAL_FAILURE(Migrate("", ""));
  const v1::Migration source = hosts_->AtSource(kVm);
  const v1::Migration destination = hosts_->AtDestination(kVm);
  Values at_source = Scrape(hosts_->source());
  Values at_destination = Scrape(hosts_->destination());

  const auto moved = [](Values& values, const std::string& role,
                        const std::string& kind) {
    return values["postcopy_pages_moved_total{role=" + role + ",kind=" + kind +
                  "}"];
  };
  EXPECT_EQ(moved(at_source, "source", "precopied"),
            source.pages().precopied());
  EXPECT_EQ(moved(at_source, "source", "background"),
            source.pages().background());
  EXPECT_EQ(moved(at_destination, "destination", "precopied"),
            destination.pages().precopied());
  EXPECT_EQ(moved(at_destination, "destination", "faulted"),
            destination.pages().faulted());
  EXPECT_EQ(at_source["postcopy_bulk_sent_bytes_total{role=source}"],
            source.bulk_sent_bytes());
  EXPECT_EQ(at_source["postcopy_precopy_rounds_total{role=source}"],
            source.rounds());
  EXPECT_EQ(at_destination["postcopy_fault_latency_seconds{role=destination}"],
            destination.fault_latency().count());
  EXPECT_EQ(at_destination["postcopy_fault_stage_seconds{role=destination,"
                           "stage=answering}"],
            destination.fault_latency().count());
  EXPECT_EQ(at_source["postcopy_downtime_seconds{role=source}"], 1);
  for (Values* values : {&at_source, &at_destination}) {
    const std::string role = values == &at_source ? "source" : "destination";
    EXPECT_EQ(
        (*values)["postcopy_migrations{role=" + role + ",state=completed}"], 1);
    EXPECT_EQ((*values)["postcopy_migrations_ended_total{role=" + role +
                        ",state=completed}"],
              1);
    EXPECT_EQ((*values)["postcopy_attached_vms{role=" + role + "}"], 1);
    EXPECT_EQ((*values)["postcopy_create_requests_total{role=" + role + "}"],
              1);
    EXPECT_EQ((*values)["postcopy_remaining_pages{role=" + role + "}"], 0);
  }
  EXPECT_EQ(at_source["postcopy_session_attempts_total{}"], 1);
  EXPECT_EQ(at_source["postcopy_session_refusals_total{}"], 0);
  EXPECT_GT(at_destination["postcopy_bulk_permits_total{}"], 0);
  EXPECT_EQ(at_destination["postcopy_bulk_permits{}"], kDefaultBulkRequests);
}

TEST_F(ObservabilityTest, OneTraceIdFollowsAMigrationThroughBothLogs) {
  ASSERT_NO_FATAL_FAILURE(Migrate(kTraceId, kTraceId));
  EXPECT_EQ(hosts_->AtSource(kVm).trace_id(), kTraceId);
  EXPECT_EQ(hosts_->AtDestination(kVm).trace_id(), kTraceId);
  for (const CapturedLog* log : {&source_log_, &destination_log_}) {
    std::set<std::string> ids;
    for (const LogRecord& record : log->records()) {
      if (FieldOf(record, kMigrationIdField).empty()) continue;
      EXPECT_EQ(FieldOf(record, kMigrationIdField), kVm);
      EXPECT_EQ(FieldOf(record, kVmNameField), kVm);
      ids.insert(FieldOf(record, kTraceIdField));
    }
    EXPECT_EQ(ids, std::set<std::string>{kTraceId});
  }
  EXPECT_EQ(StatesIn(source_log_.records()),
            (std::vector<std::string>{"PREPARING", "PRECOPY", "SWITCHING",
                                      "POSTCOPY", "COMPLETED"}));
  EXPECT_EQ(StatesIn(destination_log_.records()),
            (std::vector<std::string>{"PREPARING", "PRECOPY", "SWITCHING",
                                      "POSTCOPY", "COMPLETED"}));
}

// Whoever gives the sides different ids sees both in the source's log.
TEST_F(ObservabilityTest, TheSourceLogsTheDestinationsTraceId) {
  ASSERT_NO_FATAL_FAILURE(Migrate("", kTraceId));
  EXPECT_NE(hosts_->AtSource(kVm).trace_id(), kTraceId);
  const std::vector<LogRecord> records = source_log_.records();
  const auto session =
      std::find_if(records.begin(), records.end(), [](const LogRecord& record) {
        return record.sentence == "a destination has opened a session";
      });
  ASSERT_NE(session, records.end());
  EXPECT_EQ(FieldOf(*session, kTraceIdField), kTraceId);
  EXPECT_EQ(FieldOf(*session, kMigrationIdField), kVm);
  EXPECT_EQ(FieldOf(*session, "EPOCH"), "1");
  EXPECT_NE(FieldOf(*session, "PEER").find("127.0.0.1"), std::string::npos);
}

TEST_F(ObservabilityTest, VmsThatComeGoAndAreRefusedAreLoggedAndCounted) {
  // Its name is taken.
  EXPECT_FALSE(hosts_->AttachSource(kVm).ok());
  hosts_->KillDestinationVmm();
  hosts_->EndDestinationDaemon();
  const auto sentences = [](const CapturedLog& log) {
    std::vector<std::string> told;
    for (const LogRecord& record : log.records()) {
      told.push_back(record.sentence);
    }
    return told;
  };
  const std::vector<std::string> at_source = sentences(source_log_);
  ASSERT_GE(at_source.size(), 2u);
  EXPECT_EQ(at_source[0], "a VM has attached");
  EXPECT_EQ(at_source[1].find("a VM is refused: a VM named guest is attached"),
            0u)
      << at_source[1];
  EXPECT_EQ(sentences(destination_log_),
            (std::vector<std::string>{"a VM has attached", "a VM has gone"}));
  Values values = Scrape(hosts_->source());
  EXPECT_EQ(values["postcopy_attach_attempts_total{role=source}"], 2);
  EXPECT_EQ(values["postcopy_attach_refusals_total{role=source}"], 1);
  EXPECT_EQ(values["postcopy_attached_vms{role=source}"], 1);
}

// A destination that asks for what is not there.
TEST_F(ObservabilityTest, RefusedSessionsAreLoggedAndCounted) {
  ASSERT_OK(
      hosts_->CreateAtDestination(hosts_->DestinationRequest(kVm)).status());
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  const std::vector<LogRecord> records = source_log_.records();
  ASSERT_GE(records.size(), 2u);
  EXPECT_EQ(records[1].severity, LogSeverity::kWarning);
  EXPECT_EQ(records[1].sentence.find("a destination is refused a session: "),
            0u)
      << records[1].sentence;
  Values values = Scrape(hosts_->source());
  EXPECT_GE(values["postcopy_session_attempts_total{}"], 1);
  EXPECT_EQ(values["postcopy_session_refusals_total{}"],
            values["postcopy_session_attempts_total{}"]);
}

}  // namespace
}  // namespace postcopy
