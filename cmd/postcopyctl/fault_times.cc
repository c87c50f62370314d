#include "cmd/postcopyctl/fault_times.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/postcopyctl/units.h"

namespace postcopy {
namespace {

// Reading comes before what is called a fault's latency.
bool IsInLatency(const v1::FaultStage& stage) {
  return stage.kind() != v1::FAULT_STAGE_KIND_READING;
}

bool IsKnown(const v1::FaultStage& stage) {
  return !FaultStageName(stage.kind()).empty();
}

uint64_t LatencyTotal(const v1::FaultTimes& times) {
  uint64_t total = 0;
  for (const v1::FaultStage& stage : times.stages()) {
    if (IsInLatency(stage)) total += stage.total_us();
  }
  return total;
}

std::string FormatStage(const v1::FaultStage& stage, uint64_t latency_us) {
  std::string text = absl::StrCat("p50 ", FormatMicros(stage.p50_us()),
                                  ", p99 ", FormatMicros(stage.p99_us()),
                                  ", max ", FormatMicros(stage.max_us()));
  if (!IsInLatency(stage)) {
    absl::StrAppend(&text, " (before the latency)");
  } else if (latency_us > 0) {
    absl::StrAppendFormat(&text, " (%.1f%% of the latency)",
                          100 * static_cast<double>(stage.total_us()) /
                              static_cast<double>(latency_us));
  }
  return text;
}

std::string FormatWaits(const v1::FaultingThread& thread) {
  return absl::StrCat(FormatCount(thread.faults()), " faults, ",
                      FormatMicros(thread.wait_us()), ", longest ",
                      FormatMicros(thread.wait_max_us()));
}

}  // namespace

std::vector<std::pair<std::string, std::string>> FaultTimesRows(
    const v1::FaultTimes& times) {
  std::vector<std::pair<std::string, std::string>> rows;
  if (times.stalled_us() == 0) return rows;
  const uint64_t latency_us = LatencyTotal(times);
  for (const v1::FaultStage& stage : times.stages()) {
    if (stage.count() == 0 || !IsKnown(stage)) continue;
    rows.emplace_back(absl::StrCat("  ", FaultStageName(stage.kind())),
                      FormatStage(stage, latency_us));
  }
  rows.emplace_back("stalled",
                    absl::StrCat(FormatMicros(times.stalled_us()),
                                 " with at least one thread waiting"));
  std::vector<v1::FaultingThread> threads(times.threads().begin(),
                                          times.threads().end());
  std::sort(threads.begin(), threads.end(),
            [](const v1::FaultingThread& a, const v1::FaultingThread& b) {
              if (a.wait_us() != b.wait_us()) return a.wait_us() > b.wait_us();
              return a.thread_id() < b.thread_id();
            });
  for (size_t i = 0; i < std::min(threads.size(), kThreadsShown); ++i) {
    rows.emplace_back(absl::StrCat("  thread ", threads[i].thread_id()),
                      FormatWaits(threads[i]));
  }
  if (threads.size() > kThreadsShown) {
    rows.emplace_back("  more threads",
                      FormatCount(threads.size() - kThreadsShown));
  }
  if (times.has_other_threads()) {
    rows.emplace_back("  other threads", FormatWaits(times.other_threads()));
  }
  return rows;
}

JsonObject FaultStagesJson(const v1::FaultTimes& times) {
  JsonObject json;
  for (const v1::FaultStage& stage : times.stages()) {
    if (!IsKnown(stage)) continue;
    JsonObject of_stage;
    of_stage.Add("count", stage.count())
        .Add("p50", stage.p50_us())
        .Add("p90", stage.p90_us())
        .Add("p99", stage.p99_us())
        .Add("max", stage.max_us())
        .Add("total", stage.total_us());
    json.Add(FaultStageName(stage.kind()), of_stage);
  }
  return json;
}

JsonObject FaultingThreadJson(const v1::FaultingThread& thread) {
  JsonObject json;
  json.Add("thread_id", thread.thread_id())
      .Add("faults", thread.faults())
      .Add("wait_us", thread.wait_us())
      .Add("wait_max_us", thread.wait_max_us());
  return json;
}

std::vector<JsonObject> FaultingThreadsJson(const v1::FaultTimes& times) {
  std::vector<JsonObject> threads;
  for (const v1::FaultingThread& thread : times.threads()) {
    threads.push_back(FaultingThreadJson(thread));
  }
  return threads;
}

}  // namespace postcopy
