#include "cmd/postcopyctl/report.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "cmd/postcopyctl/fault_times.h"
#include "cmd/postcopyctl/migrate_step.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/postcopyctl/units.h"
#include "google/protobuf/timestamp.pb.h"

namespace postcopy {
namespace {

using Rows = std::vector<std::pair<std::string, std::string>>;

std::string FormatTime(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0 && time.nanos() == 0) return "";
  return absl::FormatTime(
      "%Y-%m-%dT%H:%M:%E3SZ",
      absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos()),
      absl::UTCTimeZone());
}

std::string FormatLatency(const v1::FaultLatency& latency) {
  if (latency.count() == 0) return "no faults";
  return absl::StrCat("p50 ", FormatMicros(latency.p50_us()), ", p90 ",
                      FormatMicros(latency.p90_us()), ", p99 ",
                      FormatMicros(latency.p99_us()), ", max ",
                      FormatMicros(latency.max_us()));
}

std::string FormatDowntime(uint64_t downtime_us, uint64_t added_us) {
  return absl::StrCat(FormatMicros(downtime_us), ", of which ",
                      FormatMicros(added_us), " by this service");
}

JsonObject PagesJson(const v1::PageCounters& pages) {
  JsonObject json;
  json.Add("total", pages.total())
      .Add("zero", pages.zero())
      .Add("precopied", pages.precopied())
      .Add("remaining", pages.remaining())
      .Add("stale_at_switchover", pages.stale_at_switch_over())
      .Add("discarded", pages.discarded())
      .Add("faulted", pages.faulted())
      .Add("background", pages.background())
      .Add("damaged_runs", pages.damaged_runs());
  return json;
}

JsonObject FullLatencyJson(const v1::FaultLatency& latency) {
  JsonObject json = LatencyJson(latency);
  json.Add("count", latency.count())
      .Add("buckets", std::vector<uint64_t>(latency.bucket_counts().begin(),
                                            latency.bucket_counts().end()));
  return json;
}

Rows PageRows(const v1::PageCounters& pages) {
  return {{"pages", FormatCount(pages.total())},
          {"  zero", FormatCount(pages.zero())},
          {"  precopied", FormatCount(pages.precopied())},
          {"  remaining", FormatCount(pages.remaining())},
          {"  stale", FormatCount(pages.stale_at_switch_over())},
          {"  discarded", FormatCount(pages.discarded())},
          {"  faulted", FormatCount(pages.faulted())},
          {"  background", FormatCount(pages.background())},
          {"damaged runs", FormatCount(pages.damaged_runs())}};
}

Rows SourceRows(const v1::Migration& migration) {
  const v1::SwitchOverTimes& times = migration.switch_over();
  std::string advice =
      migration.advice().recommended() ? "switch over" : "wait";
  if (!migration.advice().reason().empty()) {
    absl::StrAppend(&advice, ": ", migration.advice().reason());
  }
  const v1::DirtyTracking& tracking = migration.dirty_tracking();
  std::string found_by = DirtyTrackingName(tracking.kind());
  if (!tracking.reason().empty()) {
    absl::StrAppend(&found_by, ": ", tracking.reason());
  }
  return {{"tracking", found_by},
          {"rounds", FormatCount(migration.rounds())},
          {"precopy rate", FormatRate(migration.precopy_bytes_per_second())},
          {"advice", advice},
          {"downtime",
           FormatDowntime(times.downtime_us(), times.added_downtime_us())}};
}

// Where a number is not known.
constexpr char kUnknown[] = "not known";

std::string FormatMillis(bool known, uint64_t millis) {
  return known ? FormatMicros(millis * 1000) : kUnknown;
}

// "410.0 MiB/s written, 380.0 MiB/s sent".
Rows EstimateRows(const v1::Migration& migration) {
  if (!migration.has_estimate()) return {};
  const v1::SwitchOverEstimate& now = migration.estimate();
  const auto rate = [](bool known, uint64_t bytes_per_second) {
    return known ? FormatRate(bytes_per_second) : kUnknown;
  };
  return {{"to send", FormatBytes(ByteCount(now.unsent_bytes()))},
          {"  written", rate(now.has_dirty_bytes_per_second(),
                             now.dirty_bytes_per_second())},
          {"  sent", rate(now.has_bandwidth_bytes_per_second(),
                          now.bandwidth_bytes_per_second())},
          {"expected", ""},
          {"  precopy", FormatMillis(now.has_remaining_precopy_ms(),
                                     now.remaining_precopy_ms())},
          {"  downtime",
           now.has_downtime_us() ? FormatMicros(now.downtime_us()) : kUnknown},
          {"  stall", FormatMillis(now.has_stall_ms(), now.stall_ms())}};
}

// Numbers that are not known are left out.
JsonObject EstimateJson(const v1::SwitchOverEstimate& now) {
  JsonObject json;
  json.Add("verdict", VerdictName(now.verdict()))
      .Add("unsent_bytes", now.unsent_bytes());
  if (now.has_dirty_bytes_per_second()) {
    json.Add("dirty_bytes_per_second", now.dirty_bytes_per_second());
  }
  if (now.has_bandwidth_bytes_per_second()) {
    json.Add("bandwidth_bytes_per_second", now.bandwidth_bytes_per_second());
  }
  if (now.has_remaining_precopy_ms()) {
    json.Add("remaining_precopy_ms", now.remaining_precopy_ms());
  }
  if (now.has_downtime_us()) json.Add("downtime_us", now.downtime_us());
  if (now.has_stall_ms()) json.Add("stall_ms", now.stall_ms());
  return json;
}

std::vector<JsonObject> ChangesJson(const v1::Migration& migration) {
  std::vector<JsonObject> changes;
  for (const v1::StateChange& change : migration.state_changes()) {
    changes.emplace_back()
        .Add("number", change.number())
        .Add("state", StateName(change.state()))
        .Add("time", FormatTime(change.time()))
        .Add("status_message", change.status_message());
  }
  return changes;
}

std::string FormatLimit(uint64_t bytes_per_second) {
  return bytes_per_second == 0 ? "none" : FormatRate(bytes_per_second);
}

// The widths of a table's columns.
std::vector<size_t> Widths(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  return widths;
}

std::string Columns(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths = Widths(rows);
  std::string text;
  for (const auto& row : rows) {
    for (size_t i = 0; i + 1 < row.size(); ++i) {
      absl::StrAppendFormat(&text, "%-*s  ", static_cast<int>(widths[i]),
                            row[i]);
    }
    absl::StrAppend(&text, row.back(), "\n");
  }
  return text;
}

}  // namespace

MigrateReport MergeReport(const MigrateOptions& options,
                          const MigrateResult& result) {
  const v1::Migration& source = result.source;
  const v1::Migration& destination = result.destination;
  return {.migration_id = options.migration_id,
          .vm_name = options.vm_name,
          .state = OverallState(source, destination),
          .policy = options.policy,
          .rounds = source.rounds(),
          .pages_total =
              std::max(source.pages().total(), destination.pages().total()),
          .pages_zero = source.pages().zero(),
          .pages_precopied = source.pages().precopied(),
          .pages_stale_at_switchover = source.pages().stale_at_switch_over(),
          .pages_faulted = destination.pages().faulted(),
          .pages_background = destination.pages().background(),
          .downtime_us = source.switch_over().downtime_us(),
          .added_downtime_us = source.switch_over().added_downtime_us(),
          .fault_latency = destination.fault_latency(),
          .fault_times = destination.fault_times(),
          .precopy_bytes_per_second = source.precopy_bytes_per_second(),
          .total_ms =
              static_cast<uint64_t>(absl::ToInt64Milliseconds(result.total))};
}

JsonObject LatencyJson(const v1::FaultLatency& latency) {
  JsonObject json;
  json.Add("p50", latency.p50_us())
      .Add("p90", latency.p90_us())
      .Add("p99", latency.p99_us())
      .Add("max", latency.max_us());
  return json;
}

std::string ReportJson(const MigrateReport& report) {
  JsonObject json;
  json.Add("migration_id", report.migration_id)
      .Add("vm", report.vm_name)
      .Add("state", StateName(report.state))
      .Add("policy", PolicyName(report.policy))
      .Add("rounds", report.rounds)
      .Add("pages_total", report.pages_total)
      .Add("pages_zero", report.pages_zero)
      .Add("pages_precopied", report.pages_precopied)
      .Add("pages_stale_at_switchover", report.pages_stale_at_switchover)
      .Add("pages_faulted", report.pages_faulted)
      .Add("pages_background", report.pages_background)
      .Add("downtime_us", report.downtime_us)
      .Add("added_downtime_us", report.added_downtime_us)
      .Add("fault_latency_us", LatencyJson(report.fault_latency))
      .Add("precopy_bytes_per_second", report.precopy_bytes_per_second)
      .Add("total_ms", report.total_ms);
  return json.ToString();
}

std::string ReportTable(const MigrateReport& report) {
  return AlignedLines(
      {{"migration", report.migration_id},
       {"VM", report.vm_name},
       {"state", StateName(report.state)},
       {"policy", PolicyName(report.policy)},
       {"rounds", FormatCount(report.rounds)},
       {"pages", FormatCount(report.pages_total)},
       {"  zero", FormatCount(report.pages_zero)},
       {"  precopied", FormatCount(report.pages_precopied)},
       {"  stale at switch-over",
        FormatCount(report.pages_stale_at_switchover)},
       {"  faulted", FormatCount(report.pages_faulted)},
       {"  background", FormatCount(report.pages_background)},
       {"fault latency", FormatLatency(report.fault_latency)},
       {"downtime",
        FormatDowntime(report.downtime_us, report.added_downtime_us)},
       {"precopy rate", FormatRate(report.precopy_bytes_per_second)},
       {"total", FormatMicros(report.total_ms * 1000)}});
}

std::string MigrationJson(const v1::Migration& migration) {
  JsonObject advice;
  advice.Add("recommended", migration.advice().recommended())
      .Add("reason", migration.advice().reason());
  JsonObject tracking;
  tracking.Add("kind", DirtyTrackingName(migration.dirty_tracking().kind()))
      .Add("reason", migration.dirty_tracking().reason());
  const v1::FaultTimes& times = migration.fault_times();
  JsonObject json;
  json.Add("migration_id", migration.migration_id())
      .Add("vm", migration.vm_name())
      .Add("role", RoleName(migration.role()))
      .Add("state", StateName(migration.state()))
      .Add("status_message", migration.status_message())
      .Add("policy", PolicyName(migration.policy()))
      .Add("bulk_limit_bytes_per_second",
           migration.bulk_limit_bytes_per_second())
      .Add("create_time", FormatTime(migration.create_time()))
      .Add("state_time", FormatTime(migration.state_time()))
      .Add("rounds", migration.rounds())
      .Add("pages", PagesJson(migration.pages()))
      .Add("fault_latency_us", FullLatencyJson(migration.fault_latency()))
      .Add("fault_stages_us", FaultStagesJson(times))
      .Add("stalled_us", times.stalled_us())
      .Add("faulting_threads", FaultingThreadsJson(times))
      .Add("other_faulting_threads", FaultingThreadJson(times.other_threads()))
      .Add("precopy_bytes_per_second", migration.precopy_bytes_per_second())
      .Add("advice", advice)
      .Add("downtime_us", migration.switch_over().downtime_us())
      .Add("added_downtime_us", migration.switch_over().added_downtime_us())
      .Add("recoveries", migration.recoveries())
      .Add("dirty_tracking", tracking)
      .Add("pull_order", PullOrderName(migration.pull_order()))
      .Add("bulk_zstd", migration.bulk_zstd())
      .Add("bulk_page_bytes", migration.bulk_page_bytes())
      .Add("bulk_sent_bytes", migration.bulk_sent_bytes())
      .Add("switch_over_mode", ModeName(migration.switch_over_mode()))
      .Add("deadline_ms_per_gib", migration.deadline_ms_per_gib())
      .Add("estimate", EstimateJson(migration.estimate()))
      .Add("pause_requested", migration.pause_requested())
      .Add("source_address", migration.source_address())
      .Add("minor_faults", migration.minor_faults())
      .Add("mapped_ahead_pages", migration.mapped_ahead_pages())
      .Add("state_changes", ChangesJson(migration))
      .Add("trace_id", migration.trace_id());
  return json.ToString();
}

std::string MigrationTable(const v1::Migration& migration) {
  std::string state = StateName(migration.state());
  if (!migration.status_message().empty()) {
    absl::StrAppend(&state, ": ", migration.status_message());
  }
  Rows rows = {
      {"migration", migration.migration_id()},
      {"VM", migration.vm_name()},
      {"side", RoleName(migration.role())},
      {"state", state},
      {"since", FormatTime(migration.state_time())},
      {"created", FormatTime(migration.create_time())},
      {"policy", PolicyName(migration.policy())},
      {"bulk limit", FormatLimit(migration.bulk_limit_bytes_per_second())}};
  Rows pages = PageRows(migration.pages());
  rows.insert(rows.end(), pages.begin(), pages.end());
  Rows side = SourceRows(migration);
  Rows estimate = EstimateRows(migration);
  side.insert(side.end(), estimate.begin(), estimate.end());
  if (migration.role() == v1::ROLE_DESTINATION) {
    side = {{"fault latency", FormatLatency(migration.fault_latency())}};
    Rows times = FaultTimesRows(migration.fault_times());
    side.insert(side.end(), times.begin(), times.end());
    side.push_back({"minor faults", FormatCount(migration.minor_faults())});
    side.push_back(
        {"mapped ahead", FormatCount(migration.mapped_ahead_pages())});
    side.push_back({"pull order", PullOrderName(migration.pull_order())});
  }
  rows.insert(rows.end(), side.begin(), side.end());
  rows.push_back({"recoveries", FormatCount(migration.recoveries())});
  if (!migration.trace_id().empty()) {
    rows.push_back({"trace id", migration.trace_id()});
  }
  return AlignedLines(rows);
}

std::string MigrationListTable(const std::vector<v1::Migration>& migrations) {
  std::vector<std::vector<std::string>> rows = {
      {"MIGRATION", "VM", "SIDE", "STATE", "POLICY", "ROUNDS", "REMAINING"}};
  for (const v1::Migration& migration : migrations) {
    rows.push_back({migration.migration_id(), migration.vm_name(),
                    RoleName(migration.role()), StateName(migration.state()),
                    PolicyName(migration.policy()),
                    FormatCount(migration.rounds()),
                    FormatCount(migration.pages().remaining())});
  }
  return Columns(rows);
}

std::string AlignedLines(const Rows& rows) {
  size_t width = 0;
  for (const auto& row : rows) width = std::max(width, row.first.size());
  std::string text;
  for (const auto& row : rows) {
    absl::StrAppendFormat(&text, "%-*s  %s\n", static_cast<int>(width),
                          row.first, row.second);
  }
  return text;
}

}  // namespace postcopy
