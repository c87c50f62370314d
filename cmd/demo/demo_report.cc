#include "cmd/demo/demo_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cmd/postcopyctl/fault_times.h"
#include "cmd/postcopyctl/json_writer.h"
#include "cmd/postcopyctl/units.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"

namespace postcopy {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;

constexpr size_t kHistogramWidth = 40;
// The guest's program, tables and stacks are not data pages, so not quite all
// of RAM is compared; much less would mean that the check is broken.
constexpr uint64_t kCheckedPercentMin = 90;

absl::StatusOr<Struct> ParseObject(const std::string& json) {
  Struct object;
  auto status = google::protobuf::util::JsonStringToMessage(json, &object);
  if (status.ok()) return object;
  return absl::DataLossError(absl::StrCat("not a JSON object: ", json));
}

const Value* Find(const Struct& object, const std::string& key,
                  Value::KindCase kind) {
  auto entry = object.fields().find(key);
  bool found =
      entry != object.fields().end() && entry->second.kind_case() == kind;
  return found ? &entry->second : nullptr;
}

// Doubles hold every count up to 2^53.
bool ReadCount(const Struct& object, const std::string& key, uint64_t* count) {
  const Value* value = Find(object, key, Value::kNumberValue);
  if (value == nullptr || value->number_value() < 0) return false;
  *count = static_cast<uint64_t>(value->number_value());
  return true;
}

std::string BucketLabel(size_t bucket) {
  uint64_t first = bucket == 0 ? 0 : uint64_t{1} << bucket;
  uint64_t end = uint64_t{1} << (bucket + 1);
  return absl::StrFormat("%9s - %9s us", FormatCount(first), FormatCount(end));
}

std::string Corruption(const DemoReport& report) {
  if (report.corrupt_pages() == 0) return "none";
  return absl::StrCat(
      FormatCount(report.verdict.corrupt_pages), " found by the check, ",
      FormatCount(report.verdict.guest_corrupt_pages),
      " by the guest; first: ", report.verdict.first_corruption);
}

}  // namespace

absl::StatusOr<VmVerdict> ParseVerdict(const std::string& json) {
  absl::StatusOr<Struct> object = ParseObject(json);
  if (!object.ok()) return object.status();
  VmVerdict verdict;
  const Value* checked = Find(*object, "checked", Value::kBoolValue);
  const Value* first = Find(*object, "first_corruption", Value::kStringValue);
  if (checked == nullptr || first == nullptr ||
      !ReadCount(*object, "steps", &verdict.steps) ||
      !ReadCount(*object, "pages_checked", &verdict.pages_checked) ||
      !ReadCount(*object, "corrupt_pages", &verdict.corrupt_pages) ||
      !ReadCount(*object, "guest_corrupt_pages",
                 &verdict.guest_corrupt_pages)) {
    return absl::DataLossError(
        absl::StrCat("demovm's report is incomplete: ", json));
  }
  verdict.checked = checked->bool_value();
  verdict.first_corruption = first->string_value();
  return verdict;
}

absl::Status Judge(const DemoReport& report) {
  if (report.migration.state != v1::MIGRATION_STATE_COMPLETED) {
    return absl::InternalError("the migration is not complete");
  }
  if (report.corrupt_pages() > 0) {
    return absl::DataLossError(absl::StrCat(
        report.corrupt_pages(),
        " pages are corrupt; first: ", report.verdict.first_corruption));
  }
  uint64_t pages_min = report.migration.pages_total / 100 * kCheckedPercentMin;
  if (!report.verdict.checked || report.verdict.pages_checked < pages_min) {
    return absl::InternalError(
        absl::StrCat("only ", report.verdict.pages_checked, " of ",
                     report.migration.pages_total, " pages were checked"));
  }
  return absl::OkStatus();
}

std::string DemoReportJson(const DemoReport& report) {
  const MigrateReport& migration = report.migration;
  JsonObject json;
  json.Add("guest", report.guest)
      .Add("ram_bytes", report.ram.value())
      .Add("vcpus", report.vcpus)
      .Add("rounds", migration.rounds)
      .Add("pages_total", migration.pages_total)
      .Add("pages_zero", migration.pages_zero)
      .Add("pages_precopied", migration.pages_precopied)
      .Add("pages_stale_at_switchover", migration.pages_stale_at_switchover)
      .Add("pages_faulted", migration.pages_faulted)
      .Add("pages_background", migration.pages_background)
      .Add("corrupt_pages", report.corrupt_pages())
      .Add("downtime_us", migration.downtime_us)
      .Add("added_downtime_us", migration.added_downtime_us)
      .Add("fault_latency_us", LatencyJson(migration.fault_latency))
      .Add("precopy_bytes_per_second", migration.precopy_bytes_per_second)
      .Add("total_ms", migration.total_ms);
  return json.ToString();
}

std::string DemoReportTable(const DemoReport& report) {
  std::string text = AlignedLines(
      {{"guest", absl::StrCat(report.guest, ", ", ToString(report.ram), ", ",
                              report.vcpus, " vCPUs")},
       {"steps taken", FormatCount(report.verdict.steps)},
       {"pages checked", FormatCount(report.verdict.pages_checked)},
       {"corrupt pages", Corruption(report)}});
  absl::StrAppend(&text, "\n", ReportTable(report.migration));
  std::string histogram =
      LatencyHistogram(report.migration.fault_latency, kHistogramWidth);
  if (!histogram.empty()) {
    absl::StrAppend(&text, "\nHow long guest threads waited for a page:\n",
                    histogram);
  }
  const auto times = FaultTimesRows(report.migration.fault_times);
  if (!times.empty()) {
    absl::StrAppend(&text, "\nWhere that time went:\n", AlignedLines(times));
  }
  return text;
}

std::string LatencyHistogram(const v1::FaultLatency& latency, size_t width) {
  const auto& counts = latency.bucket_counts();
  size_t first = counts.size(), end = 0;
  uint64_t fullest = 0, sum = 0;
  for (size_t i = 0; i < static_cast<size_t>(counts.size()); ++i) {
    uint64_t count = counts[static_cast<int>(i)];
    if (count == 0) continue;
    first = std::min(first, i);
    end = i + 1;
    fullest = std::max(fullest, count);
    sum += count;
  }
  std::string text;
  // 63 is the last bucket whose end is a number.
  for (size_t i = first; i < std::min<size_t>(end, 63); ++i) {
    double count = static_cast<double>(counts[static_cast<int>(i)]);
    auto marks = static_cast<size_t>(count / static_cast<double>(fullest) *
                                     static_cast<double>(width));
    // Not even one in a thousand faults goes unseen.
    if (count > 0) marks = std::max<size_t>(marks, 1);
    absl::StrAppendFormat(&text, "  %s |%-*s %9s  %5.1f%%\n", BucketLabel(i),
                          static_cast<int>(width), std::string(marks, '#'),
                          FormatCount(counts[static_cast<int>(i)]),
                          100 * count / static_cast<double>(sum));
  }
  return text;
}

}  // namespace postcopy
