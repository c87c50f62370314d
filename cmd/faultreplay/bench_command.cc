// bench: the standard suite, and the performance budget.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <limits>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "cmd/faultreplay/command.h"
#include "cmd/trace/trace_codec.h"

namespace postcopy {
namespace {

constexpr double kMib = 1 << 20;

// One experiment: a trace, as the flags of synth make it or as it was recorded,
// and backends.
struct Bench {
  const char* title;
  const char* pattern;
  uint64_t ram_mib;
  uint64_t touches;
  uint32_t threads;
  int64_t think_us;
  const char* backends;
  uint32_t repeats;
  bool await_whole;
  // A recorded trace instead, of which the first `touches` are replayed, with
  // the pauses between them.
  const char* recorded = nullptr;
};

// The order is that of the sections of the report.
// What is idle asks for all of RAM page by page in the end, so RAM is small.
constexpr Bench kBenches[] = {
    {"One thread, idle network", "uniform", 32, 1500, 1, 0,
     "local,tcp,grpc-echo,service:idle", 5, false},
    {"16 threads, idle network", "uniform", 32, 6000, 16, 0,
     "grpc-echo,service:idle", 3, false},
    {"Under bulk load", "uniform", 128, 1500, 1, 0,
     "service:linear:idle,service:linear,service:linear:limit=256MiB", 3,
     false},
    {"All of RAM", "sequential", 256, 1, 1, 0, "grpc-stream,service:linear", 3,
     true},
    {"Order: Linux boots", "", 0, 4000, 0, 0,
     "service:idle,service:linear:limit=256MiB,service:limit=256MiB", 2, false,
     "linux_boot.trace"},
    {"Order: Redis", "", 0, 4000, 0, 0,
     "service:idle,service:linear:limit=256MiB,service:limit=256MiB", 2, false,
     "redis.trace"},
    {"Order: a compile", "", 0, 4000, 0, 0,
     "service:idle,service:linear:limit=256MiB,service:limit=256MiB", 2, false,
     "compile.trace"},
};

enum BenchIndex : size_t { kOneThread, kManyThreads, kBulkLoad, kAll, kOrders };

// The summary of the backend at `index` in the report.
BackendSummary At(const ReplayReport& report, size_t index) {
  return Summarize(report.backends[index]);
}

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

// Of what may be none; of what takes time in any case, so that none was not
// measured.
double Share(double a, double b) { return b > 0 ? a / b : kNothing; }
double Ratio(double a, double b) { return a > 0 ? Share(a, b) : kNothing; }

void AddFloors(const ReplayReport& report, std::vector<BudgetLine>* lines) {
  const BackendSummary local = At(report, 0);
  const BackendSummary echo = At(report, 2);
  const BackendSummary service = At(report, 3);
  lines->push_back(
      {.what = "1 thread: p50 of a fault / (grpc-echo p50 + local p50)",
       .target = 1.25,
       .measured = Ratio(service.p50_us, echo.p50_us + local.p50_us)});
  lines->push_back({.what = "1 thread: p99 of a fault / its p50",
                    .target = 2,
                    .measured = Ratio(service.p99_us, service.p50_us)});
}

void AddThroughput(const ReplayReport& many, const ReplayReport& all,
                   std::vector<BudgetLine>* lines) {
  lines->push_back({.what = "16 threads: faults per second / grpc-echo's",
                    .target = 0.8,
                    .at_most = false,
                    .measured = Ratio(At(many, 1).waits_per_second,
                                      At(many, 0).waits_per_second)});
  lines->push_back(
      {.what = "bulk: bytes per second / a bare gRPC stream's",
       .target = 0.8,
       .at_most = false,
       .measured = Ratio(At(all, 0).whole_ms, At(all, 1).whole_ms)});
}

void AddBulkLoad(const ReplayReport& report, std::vector<BudgetLine>* lines) {
  const BackendSummary idle = At(report, 0);
  lines->push_back({.what = "urgent p99 under full bulk load / its idle p99",
                    .target = 4,
                    .measured = Ratio(At(report, 1).p99_us, idle.p99_us)});
  lines->push_back({.what = "urgent p99, bulk at 256 MiB/s / its idle p99",
                    .target = 4,
                    .measured = Ratio(At(report, 2).p99_us, idle.p99_us)});
  const double pages =
      static_cast<double>(report.backends[1].runs.front().pages_total);
  lines->push_back({.what = "private memory for one VM in both daemons, MiB",
                    .target = 2 * (16 + pages / 4 / kMib),
                    .measured = Ratio(At(report, 1).rss_added_bytes, kMib)});
}

void AddOrder(const ReplayReport& report, std::vector<BudgetLine>* lines) {
  const double adaptive = At(report, 2).stall_sum_ms;
  lines->push_back({.what = absl::StrCat(report.title, ": stall / demand only"),
                    .target = 0.5,
                    .measured = Share(adaptive, At(report, 0).stall_sum_ms)});
  lines->push_back({.what = absl::StrCat(report.title, ": stall / linear"),
                    .target = 1,
                    .measured = Share(adaptive, At(report, 1).stall_sum_ms)});
}

std::vector<BudgetLine> BudgetOf(absl::Span<const ReplayReport> reports) {
  std::vector<BudgetLine> lines;
  AddFloors(reports[kOneThread], &lines);
  AddThroughput(reports[kManyThreads], reports[kAll], &lines);
  AddBulkLoad(reports[kBulkLoad], &lines);
  for (const ReplayReport& report : reports.subspan(kOrders)) {
    AddOrder(report, &lines);
  }
  return lines;
}

absl::StatusOr<Trace> TraceOf(const ReplayContext& context,
                              const Bench& bench) {
  if (bench.recorded == nullptr) return TraceFromFlags(context.flags);
  absl::StatusOr<std::string> path = FindRecordedTrace(bench.recorded);
  if (!path.ok()) return path.status();
  absl::StatusOr<Trace> trace = ReadTraceFile(*path);
  if (trace.ok() && trace->events.size() > bench.touches) {
    trace->dropped += trace->events.size() - bench.touches;
    trace->events.resize(bench.touches);
  }
  return trace;
}

absl::StatusOr<ReplayReport> RunOne(const ReplayContext& context,
                                    const Bench& bench) {
  ReplayContext one = context;
  one.flags.pattern = bench.pattern;
  one.flags.ram = ByteCount(bench.ram_mib << 20);
  one.flags.touches = bench.touches;
  one.flags.threads = bench.threads;
  one.flags.think_time = absl::Microseconds(bench.think_us);
  const bool thinks = bench.think_us > 0 || bench.recorded != nullptr;
  one.flags.think = thinks ? "recorded" : "none";
  one.flags.backend = bench.backends;
  one.flags.repeats = bench.repeats;
  one.flags.await_whole = bench.await_whole;
  absl::StatusOr<Trace> trace = TraceOf(one, bench);
  if (!trace.ok()) return trace.status();
  absl::StatusOr<ExperimentOptions> options = ExperimentFromFlags(one);
  if (!options.ok()) return options.status();
  options->title = bench.title;
  return RunExperiment(*trace, *options);
}

}  // namespace

absl::Status RunBench(const ReplayContext& context) {
  if (!context.arguments.empty()) {
    return absl::InvalidArgumentError("bench takes no arguments");
  }
  std::vector<ReplayReport> reports;
  for (const Bench& bench : kBenches) {
    absl::StatusOr<ReplayReport> report = RunOne(context, bench);
    if (!report.ok()) return report.status();
    *context.out << ReportTable(*report) << std::endl;
    reports.push_back(*std::move(report));
  }
  const std::vector<BudgetLine> budget = BudgetOf(reports);
  *context.out << BudgetTable(budget);
  const std::string& directory = context.flags.report;
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  const std::string stem =
      absl::StrCat(directory, "/", context.flags.placement);
  absl::Status status =
      WriteTextFile(stem + ".json", ReportsJson(reports, budget));
  status.Update(WriteTextFile(stem + ".html", ReportsHtml(reports, budget)));
  const bool whole =
      std::all_of(budget.begin(), budget.end(),
                  [](const BudgetLine& line) { return line.was_measured(); });
  if (status.ok() && !whole) {
    return absl::DataLossError("there was nothing to measure for some lines");
  }
  return status;
}

}  // namespace postcopy
