// What several replays have shown, for people and for programs.
#ifndef CMD_FAULTREPLAY_REPORT_H_
#define CMD_FAULTREPLAY_REPORT_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "cmd/faultreplay/machine.h"
#include "cmd/faultreplay/run_result.h"

namespace postcopy {

struct ReplayReport {
  std::string title;
  // How it was called.
  std::string command;
  std::string machine;
  std::string placement;
  std::string trace;
  // Before the first repeat and behind each.
  std::vector<Noise> noise;
  // Each has the same number of runs, made in turn.
  std::vector<BackendRuns> backends;
};

// One backend, each number the median of its runs.
struct BackendSummary {
  std::string name;
  double waits = 0;
  double p50_us = 0, p90_us = 0, p99_us = 0, p999_us = 0, max_us = 0;
  // (largest - smallest) / median of the runs' p50.
  double p50_spread = 0;
  double waits_per_second = 0;
  // Waits summed up, and the time in which anybody waited.
  double stall_sum_ms = 0, stall_any_ms = 0;
  double duration_ms = 0, whole_ms = 0;
  // Of migrations; 0 where there was none.
  double migration_ms = 0, downtime_ms = 0;
  double avoided = 0;
  double unused_bytes = 0;
  double cpu_seconds_per_gib = 0;
  double rss_base_bytes = 0, rss_added_bytes = 0;
};

// A target of the performance budget, and what was measured for it.
struct BudgetLine {
  std::string what;
  // What `measured` must not exceed, or must reach.
  double target = 0;
  bool at_most = true;
  // NaN: there was nothing to measure, which does not meet it.
  double measured = std::numeric_limits<double>::quiet_NaN();

  bool was_measured() const { return !std::isnan(measured); }
  bool met() const { return at_most ? measured <= target : measured >= target; }
};

BackendSummary Summarize(const BackendRuns& runs);

// The longest gap of all, and the largest share.
Noise WorstNoise(const std::vector<Noise>& noise);

// With a newline at the end, each.
std::string ReportTable(const ReplayReport& report);
std::string BudgetTable(absl::Span<const BudgetLine> lines);
// One object on one line; several reports are an array under "reports".
std::string ReportJson(const ReplayReport& report);
std::string ReportsJson(absl::Span<const ReplayReport> reports,
                        absl::Span<const BudgetLine> lines);
// The distribution of the latencies of all runs, a part for each backend, as
// HdrHistogram's outputPercentileDistribution writes it, in microseconds.
std::string ReportHdr(const ReplayReport& report);
// One file that needs nothing else, scripts neither.
std::string ReportsHtml(absl::Span<const ReplayReport> reports,
                        absl::Span<const BudgetLine> lines);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_REPORT_H_
