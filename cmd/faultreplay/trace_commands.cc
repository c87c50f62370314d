// synth, info, convert: traces without a replay.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cmd/faultreplay/command.h"
#include "cmd/faultreplay/samples.h"
#include "cmd/faultreplay/synth.h"
#include "cmd/postcopyctl/json_writer.h"
#include "cmd/trace/trace_codec.h"
#include "cmd/trace/trace_text.h"

namespace postcopy {
namespace {

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (file.is_open() && file.good()) return text.str();
  return absl::NotFoundError(absl::StrCat("cannot read ", path));
}

absl::Status Annotate(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(path, ": ", status.message()));
}

// Threads that the table names; of more only the busiest.
constexpr size_t kThreadsShown = 8;
// Pages on either side of its last one where a thread is said to stay.
constexpr uint64_t kNearPages = 16;

struct ThreadSummary {
  uint32_t thread = 0;
  uint64_t events = 0;
  PageIndex last;
};

struct TraceSummary {
  uint64_t pages = 0;
  // By events, the most first.
  std::vector<ThreadSummary> threads;
  // Events at the page behind the one before of the same thread, and such at
  // most kNearPages from it, these included.
  uint64_t next = 0;
  uint64_t near = 0;
  uint64_t writes = 0;
  uint64_t with_times = 0;
  uint64_t duration_ns = 0;
  std::vector<int64_t> latencies;
};

TraceSummary SummaryOf(const Trace& trace) {
  TraceSummary summary;
  std::set<uint64_t> pages;
  std::map<uint32_t, ThreadSummary> threads;
  for (const TraceEvent& event : trace.events) {
    pages.insert(event.page.value());
    ThreadSummary& thread = threads[event.thread];
    if (thread.events++ > 0) {
      const auto step = static_cast<int64_t>(event.page.value()) -
                        static_cast<int64_t>(thread.last.value());
      if (step == 1) ++summary.next;
      if (std::abs(step) <= static_cast<int64_t>(kNearPages)) ++summary.near;
    }
    thread.thread = event.thread;
    thread.last = event.page;
    if (event.kind == TouchKind::kWrite ||
        event.kind == TouchKind::kWriteProtect) {
      ++summary.writes;
    }
    // From the read of the message on, as FaultLatency has it.
    const uint64_t latency =
        event.stages_ns[1] + event.stages_ns[2] + event.stages_ns[3];
    if (latency > 0) summary.latencies.push_back(static_cast<int64_t>(latency));
  }
  std::sort(summary.latencies.begin(), summary.latencies.end());
  summary.pages = pages.size();
  for (const auto& [id, thread] : threads) summary.threads.push_back(thread);
  std::stable_sort(summary.threads.begin(), summary.threads.end(),
                   [](const ThreadSummary& a, const ThreadSummary& b) {
                     return a.events > b.events;
                   });
  summary.with_times = summary.latencies.size();
  if (!trace.events.empty()) {
    summary.duration_ns =
        trace.events.back().time_ns - trace.events.front().time_ns;
  }
  return summary;
}

std::string InfoJson(const Trace& trace, const TraceSummary& summary) {
  JsonObject json;
  json.Add("origin", trace.origin)
      .Add("pages", trace.pages.value())
      .Add("events", uint64_t{trace.events.size()})
      .Add("dropped", trace.dropped)
      .Add("ended_early", trace.ended_early)
      .Add("threads", uint64_t{summary.threads.size()})
      .Add("pages_touched", summary.pages)
      .Add("writes", summary.writes)
      .Add("next_page", summary.next)
      .Add("near_pages", summary.near)
      .Add("duration_ns", summary.duration_ns)
      .Add("events_with_times", summary.with_times)
      .Add("p50_ns", static_cast<uint64_t>(PercentileOf(summary.latencies, 50)))
      .Add("p99_ns",
           static_cast<uint64_t>(PercentileOf(summary.latencies, 99)));
  return json.ToString() + "\n";
}

std::string InfoTable(const Trace& trace, const TraceSummary& summary) {
  std::string text = absl::StrFormat(
      "origin    %s\nRAM       %s, %d pages\nevents    %d, of them %d writes; "
      "%d dropped%s\ntouched   %d pages by %d threads in %.3f s\n",
      trace.origin, ToString(BytesIn(trace.pages)), trace.pages.value(),
      trace.events.size(), summary.writes, trace.dropped,
      trace.ended_early ? "; it ends early" : "", summary.pages,
      summary.threads.size(), static_cast<double>(summary.duration_ns) / 1e9);
  if (!trace.events.empty()) {
    const auto percent = [&](uint64_t events) {
      return 100 * events / trace.events.size();
    };
    absl::StrAppendFormat(
        &text,
        "order     %d %% at the page behind the thread's last, %d %% within "
        "%d pages of it\n",
        percent(summary.next), percent(summary.near), kNearPages);
    absl::StrAppend(&text, "threads  ");
    for (size_t i = 0; i < summary.threads.size(); ++i) {
      if (i == kThreadsShown) {
        absl::StrAppend(&text, ", ...");
        break;
      }
      absl::StrAppendFormat(&text, "%s %d: %d", i == 0 ? "" : ",",
                            summary.threads[i].thread,
                            summary.threads[i].events);
    }
    absl::StrAppend(&text, "\n");
  }
  if (summary.with_times > 0) {
    absl::StrAppendFormat(
        &text, "latency   p50 %.1f us, p99 %.1f us, of %d faults\n",
        static_cast<double>(PercentileOf(summary.latencies, 50)) / 1e3,
        static_cast<double>(PercentileOf(summary.latencies, 99)) / 1e3,
        summary.with_times);
  }
  return text;
}

}  // namespace

absl::StatusOr<Trace> TraceFromFlags(const ReplayFlags& flags) {
  absl::StatusOr<std::vector<Pattern>> patterns = ParsePatterns(flags.pattern);
  if (!patterns.ok()) return patterns.status();
  if (!IsPageAligned(flags.ram) || flags.touches > kTraceEventsMax ||
      flags.think_time < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ram must be whole pages, --touches at most ",
                     kTraceEventsMax, ", --think_time not negative"));
  }
  return Synthesize({.patterns = *patterns,
                     .pages = PagesIn(flags.ram),
                     .touches = static_cast<size_t>(flags.touches),
                     .threads = flags.threads,
                     .seed = flags.seed,
                     .think_ns = static_cast<uint64_t>(
                         absl::ToInt64Nanoseconds(flags.think_time)),
                     .write_percent = flags.write_percent,
                     .description = absl::StrCat("synth ", flags.pattern,
                                                 " seed ", flags.seed)});
}

absl::StatusOr<Trace> ReadAnyTrace(const std::string& path) {
  const bool csv = absl::EndsWith(path, ".csv");
  if (!csv && !absl::EndsWith(path, ".json")) return ReadTraceFile(path);
  absl::StatusOr<std::string> text = ReadText(path);
  if (!text.ok()) return text.status();
  absl::StatusOr<Trace> trace =
      csv ? TraceFromCsv(*text) : TraceFromJson(*text);
  if (!trace.ok()) return Annotate(path, trace.status());
  return trace;
}

absl::Status WriteAnyTrace(const std::string& path, const Trace& trace) {
  if (absl::EndsWith(path, ".csv")) {
    return WriteTextFile(path, TraceToCsv(trace));
  }
  if (absl::EndsWith(path, ".json")) {
    return WriteTextFile(path, TraceToJson(trace));
  }
  return WriteTraceFile(path, trace);
}

absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (file.good()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cannot write ", path));
}

absl::Status RunSynth(const ReplayContext& context) {
  if (context.arguments.size() != 1) {
    return absl::InvalidArgumentError("synth takes one argument, the new file");
  }
  absl::StatusOr<Trace> trace = TraceFromFlags(context.flags);
  if (!trace.ok()) return trace.status();
  return WriteAnyTrace(context.arguments[0], *trace);
}

absl::Status RunInfo(const ReplayContext& context) {
  if (context.arguments.size() != 1) {
    return absl::InvalidArgumentError("info takes one argument, the trace");
  }
  absl::StatusOr<Trace> trace = ReadAnyTrace(context.arguments[0]);
  if (!trace.ok()) return trace.status();
  const TraceSummary summary = SummaryOf(*trace);
  *context.out << (context.flags.output == "json" ? InfoJson(*trace, summary)
                                                  : InfoTable(*trace, summary));
  return absl::OkStatus();
}

absl::Status RunConvert(const ReplayContext& context) {
  if (context.arguments.size() != 2) {
    return absl::InvalidArgumentError(
        "convert takes two arguments, from and to; .csv and .json say what");
  }
  absl::StatusOr<Trace> trace = ReadAnyTrace(context.arguments[0]);
  if (!trace.ok()) return trace.status();
  return WriteAnyTrace(context.arguments[1], *trace);
}

}  // namespace postcopy
