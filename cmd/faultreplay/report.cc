#include "cmd/faultreplay/report.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cmd/postcopyctl/json_writer.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"

namespace postcopy {
namespace {

constexpr double kGib = 1 << 30;
constexpr double kMib = 1 << 20;

double Micros(int64_t nanos) {
  return static_cast<double>(nanos) / static_cast<double>(kNanosPerMicro);
}
double Millis(int64_t nanos) {
  return static_cast<double>(nanos) / static_cast<double>(kNanosPerMilli);
}

double CpuSecondsPerGib(const RunResult& run) {
  const double bytes = static_cast<double>(run.backend.pages_moved) *
                       static_cast<double>(kPageSize);
  if (bytes == 0) return 0;
  return static_cast<double>(run.backend.cpu_ns) /
         static_cast<double>(kNanosPerSecond) / (bytes / kGib);
}

double WaitsPerSecond(const RunResult& run) {
  if (run.duration_ns == 0) return 0;
  return static_cast<double>(run.waits.size()) *
         static_cast<double>(kNanosPerSecond) /
         static_cast<double>(run.duration_ns);
}

// What `of` gives for each run.
std::vector<double> Each(const BackendRuns& runs,
                         const std::function<double(const RunResult&)>& of) {
  std::vector<double> values;
  values.reserve(runs.runs.size());
  for (const RunResult& run : runs.runs) values.push_back(of(run));
  return values;
}

std::function<double(const RunResult&)> PercentileMicros(double percent) {
  return [percent](const RunResult& run) {
    return Micros(PercentileOf(SortedLatencies(run.waits), percent));
  };
}

uint64_t Rounded(double value) {
  return static_cast<uint64_t>(std::max(value, 0.0) + 0.5);
}

JsonObject SummaryJson(const BackendSummary& summary) {
  JsonObject latency;
  latency.Add("p50", Rounded(summary.p50_us * 1000))
      .Add("p90", Rounded(summary.p90_us * 1000))
      .Add("p99", Rounded(summary.p99_us * 1000))
      .Add("p99_9", Rounded(summary.p999_us * 1000))
      .Add("max", Rounded(summary.max_us * 1000));
  JsonObject json;
  json.Add("name", summary.name)
      .Add("faults", Rounded(summary.waits))
      .Add("fault_latency_ns", latency)
      .Add("p50_spread_permille", Rounded(summary.p50_spread * 1000))
      .Add("faults_per_second", Rounded(summary.waits_per_second))
      .Add("stall_sum_us", Rounded(summary.stall_sum_ms * 1000))
      .Add("stall_any_us", Rounded(summary.stall_any_ms * 1000))
      .Add("duration_us", Rounded(summary.duration_ms * 1000))
      .Add("whole_us", Rounded(summary.whole_ms * 1000))
      .Add("migration_us", Rounded(summary.migration_ms * 1000))
      .Add("downtime_us", Rounded(summary.downtime_ms * 1000))
      .Add("faults_avoided", Rounded(summary.avoided))
      .Add("unused_bytes", Rounded(summary.unused_bytes))
      .Add("cpu_ms_per_gib", Rounded(summary.cpu_seconds_per_gib * 1000))
      .Add("rss_base_bytes", Rounded(summary.rss_base_bytes))
      .Add("rss_added_bytes", Rounded(summary.rss_added_bytes));
  return json;
}

JsonObject RunJson(const RunResult& run) {
  const std::vector<int64_t> sorted = SortedLatencies(run.waits);
  const auto percentile = [&](double percent) {
    return static_cast<uint64_t>(PercentileOf(sorted, percent));
  };
  std::vector<JsonObject> stages;
  for (const StageTime& stage : run.backend.stages) {
    stages.push_back(JsonObject()
                         .Add("name", stage.name)
                         .Add("count", stage.count)
                         .Add("p50_us", stage.p50_us)
                         .Add("p99_us", stage.p99_us)
                         .Add("total_us", stage.total_us));
  }
  JsonObject json;
  json.Add("faults", uint64_t{run.waits.size()})
      .Add("p50_ns", percentile(50))
      .Add("p99_ns", percentile(99))
      .Add("max_ns", percentile(100))
      .Add("touches", run.touches)
      .Add("faults_avoided", run.avoided)
      .Add("pages_checked", run.checked)
      .Add("pages_wrong", run.wrong)
      .Add("note", run.backend.note)
      .Add("stages", stages);
  return json;
}

JsonObject NoiseJson(const Noise& noise) {
  JsonObject json;
  json.Add("longest_gap_ns", static_cast<uint64_t>(noise.longest_gap_ns))
      .Add("lost_permille", Rounded(noise.lost * 1000));
  return json;
}

std::string StageLines(const BackendRuns& runs) {
  if (runs.runs.empty() || runs.runs.back().backend.stages.empty()) return "";
  std::string text = absl::StrCat("\nstages of a fault, ", runs.name,
                                  " (last run, by faultd):\n");
  for (const StageTime& stage : runs.runs.back().backend.stages) {
    absl::StrAppendFormat(
        &text, "  %-12s p50 %6d us  p99 %6d us  sum %9.1f ms\n", stage.name,
        stage.p50_us, stage.p99_us, static_cast<double>(stage.total_us) / 1000);
  }
  return text;
}

// Of the backends that are migrations, each with what is to be known of it.
std::string MigrationLines(const ReplayReport& report) {
  std::string lines;
  std::string notes;
  for (const BackendRuns& runs : report.backends) {
    const BackendSummary s = Summarize(runs);
    if (s.migration_ms == 0) continue;
    const RunResult& last = runs.runs.back();
    const double mib = static_cast<double>(last.pages_total) *
                       static_cast<double>(kPageSize) / kMib;
    absl::StrAppendFormat(&lines, "%-28s %9.1f %9.2f %9.1f %9.1f %9.0f\n",
                          s.name, s.migration_ms, s.downtime_ms, s.whole_ms,
                          s.duration_ms,
                          s.whole_ms > 0 ? mib / s.whole_ms * 1000 : 0);
    if (last.backend.note.empty()) continue;
    absl::StrAppend(&notes, "  ", runs.name, ": ", last.backend.note, "\n");
  }
  if (lines.empty()) return "";
  return absl::StrFormat("\n%-28s %9s %9s %9s %9s %9s\n", "migration (medians)",
                         "all ms", "downtime", "whole ms", "touches", "MiB/s") +
         lines + notes;
}

JsonObject ReportObject(const ReplayReport& report) {
  std::vector<JsonObject> backends;
  for (const BackendRuns& runs : report.backends) {
    std::vector<JsonObject> each;
    for (const RunResult& run : runs.runs) each.push_back(RunJson(run));
    JsonObject backend = SummaryJson(Summarize(runs));
    backends.push_back(backend.Add("runs", each));
  }
  JsonObject json;
  json.Add("title", report.title)
      .Add("command", report.command)
      .Add("trace", report.trace)
      .Add("machine", report.machine)
      .Add("placement", report.placement)
      .Add("noise", NoiseJson(WorstNoise(report.noise)))
      .Add("backends", backends);
  return json;
}

}  // namespace

BackendSummary Summarize(const BackendRuns& runs) {
  const auto median = [&](const std::function<double(const RunResult&)>& of) {
    return MedianOf(Each(runs, of));
  };
  BackendSummary summary = {.name = runs.name};
  summary.waits = median([](const RunResult& run) {
    return static_cast<double>(run.waits.size());
  });
  const std::vector<double> p50 = Each(runs, PercentileMicros(50));
  summary.p50_us = MedianOf(p50);
  summary.p50_spread = SpreadOf(p50);
  summary.p90_us = median(PercentileMicros(90));
  summary.p99_us = median(PercentileMicros(99));
  summary.p999_us = median(PercentileMicros(99.9));
  summary.max_us = median(PercentileMicros(100));
  summary.waits_per_second = median(WaitsPerSecond);
  summary.stall_sum_ms = median(
      [](const RunResult& run) { return Millis(SumOfWaits(run.waits)); });
  summary.stall_any_ms = median(
      [](const RunResult& run) { return Millis(UnionOfWaits(run.waits)); });
  summary.duration_ms =
      median([](const RunResult& run) { return Millis(run.duration_ns); });
  summary.whole_ms =
      median([](const RunResult& run) { return Millis(run.whole_ns); });
  summary.migration_ms = median(
      [](const RunResult& run) { return Millis(run.backend.migration_ns); });
  summary.downtime_ms = median(
      [](const RunResult& run) { return Millis(run.backend.downtime_ns); });
  summary.avoided = median(
      [](const RunResult& run) { return static_cast<double>(run.avoided); });
  summary.unused_bytes = median([](const RunResult& run) {
    return static_cast<double>(run.unused) * static_cast<double>(kPageSize);
  });
  summary.cpu_seconds_per_gib = median(CpuSecondsPerGib);
  summary.rss_base_bytes = median([](const RunResult& run) {
    return static_cast<double>(run.backend.rss_base_bytes);
  });
  summary.rss_added_bytes = median([](const RunResult& run) {
    return static_cast<double>(run.backend.rss_added_bytes);
  });
  return summary;
}

Noise WorstNoise(const std::vector<Noise>& noise) {
  Noise worst;
  for (const Noise& one : noise) {
    worst.longest_gap_ns = std::max(worst.longest_gap_ns, one.longest_gap_ns);
    worst.lost = std::max(worst.lost, one.lost);
  }
  return worst;
}

std::string ReportTable(const ReplayReport& report) {
  const Noise noise = WorstNoise(report.noise);
  std::string text = absl::StrFormat(
      "%s\ntrace      %s\nmachine    %s\nplacement  %s\n"
      "noise      longest gap of a spinning thread %.1f us, %.1f %% of its "
      "time lost\n\n",
      report.title, report.trace, report.machine, report.placement,
      Micros(noise.longest_gap_ns), noise.lost * 100);
  absl::StrAppendFormat(
      &text, "%-28s %8s %8s %8s %8s %8s %9s %7s %9s %9s %9s %8s %9s\n",
      "backend (medians)", "faults", "p50 us", "p90", "p99", "p99.9", "max",
      "spread", "faults/s", "stall ms", "any ms", "avoided", "CPU s/GiB");
  for (const BackendRuns& runs : report.backends) {
    const BackendSummary s = Summarize(runs);
    absl::StrAppendFormat(
        &text,
        "%-28s %8.0f %8.1f %8.1f %8.1f %8.1f %9.1f %6.0f%% %9.0f %9.1f %9.1f "
        "%8.0f %9.2f\n",
        s.name, s.waits, s.p50_us, s.p90_us, s.p99_us, s.p999_us, s.max_us,
        s.p50_spread * 100, s.waits_per_second, s.stall_sum_ms, s.stall_any_ms,
        s.avoided, s.cpu_seconds_per_gib);
  }
  text += MigrationLines(report);
  for (const BackendRuns& runs : report.backends) text += StageLines(runs);
  return text;
}

std::string BudgetTable(absl::Span<const BudgetLine> lines) {
  std::string text =
      absl::StrFormat("%-64s %10s %10s\n", "budget", "target", "measured");
  for (const BudgetLine& line : lines) {
    absl::StrAppendFormat(&text, "%-64s %s %7.2f", line.what,
                          line.at_most ? "<=" : ">=", line.target);
    if (line.was_measured()) {
      absl::StrAppendFormat(&text, " %10.2f  %s\n", line.measured,
                            line.met() ? "met" : "NOT MET");
    } else {
      absl::StrAppendFormat(&text, " %10s  NOT MEASURED\n", "");
    }
  }
  return text;
}

std::string ReportJson(const ReplayReport& report) {
  return ReportObject(report).ToString() + "\n";
}

std::string ReportsJson(absl::Span<const ReplayReport> reports,
                        absl::Span<const BudgetLine> lines) {
  std::vector<JsonObject> budget;
  for (const BudgetLine& line : lines) {
    JsonObject object;
    object.Add("what", line.what)
        .Add("at_most", line.at_most)
        .Add("target_permille", Rounded(line.target * 1000))
        .Add("met", line.met());
    if (line.was_measured()) {
      object.Add("measured_permille", Rounded(line.measured * 1000));
    }
    budget.push_back(std::move(object));
  }
  std::vector<JsonObject> all;
  for (const ReplayReport& report : reports) {
    all.push_back(ReportObject(report));
  }
  JsonObject json;
  json.Add("budget", budget).Add("reports", all);
  return json.ToString() + "\n";
}

std::string ReportHdr(const ReplayReport& report) {
  std::string text;
  for (const BackendRuns& runs : report.backends) {
    std::vector<Wait> all;
    for (const RunResult& run : runs.runs) {
      all.insert(all.end(), run.waits.begin(), run.waits.end());
    }
    const std::vector<int64_t> sorted = SortedLatencies(all);
    absl::StrAppend(&text, "# ", runs.name, "\n");
    absl::StrAppendFormat(&text, "%12s %14s %10s %14s\n\n", "Value",
                          "Percentile", "TotalCount", "1/(1-Percentile)");
    // Halfway to 100 % in five steps, again and again.
    double left = 1;
    while (!sorted.empty() && left * static_cast<double>(sorted.size()) >= 1) {
      for (int step = 0; step < 5; ++step) {
        const double fraction = 1 - left * (1 - step / 10.0);
        const int64_t value =
            PercentileOf(sorted, std::max(fraction * 100, 1e-9));
        const auto count =
            std::upper_bound(sorted.begin(), sorted.end(), value) -
            sorted.begin();
        absl::StrAppendFormat(&text, "%12.3f %14.12f %10d %14.2f\n",
                              Micros(value), fraction, count,
                              1 / (1 - fraction));
      }
      left /= 2;
    }
    const int64_t max = sorted.empty() ? 0 : sorted.back();
    absl::StrAppendFormat(&text,
                          "%12.3f %14.12f %10d\n#[Max = %12.3f, Total "
                          "count = %12d]\n\n",
                          Micros(max), 1.0, sorted.size(), Micros(max),
                          sorted.size());
  }
  return text;
}

}  // namespace postcopy
