#include "cmd/pageserverd/source_events.h"

#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

const char* NameOf(DataPlaneLane lane) {
  return lane == DataPlaneLane::kUrgent ? "urgent" : "bulk";
}

LogFields FieldsOf(const SessionAttempt& attempt) {
  if (!attempt.snapshot_name.empty()) {
    return {{"SNAPSHOT", attempt.snapshot_name}, {"PEER", attempt.peer}};
  }
  return {{kMigrationIdField, attempt.migration_id},
          {kVmNameField, attempt.vm_name},
          // The destination's; the source's lines have its own.
          {kTraceIdField, attempt.trace_id},
          {"EPOCH", absl::StrCat(attempt.epoch)},
          {"PEER", attempt.peer}};
}

double Load(const std::atomic<uint64_t>& counter) {
  return static_cast<double>(counter.load(std::memory_order_relaxed));
}

}  // namespace

SourceEvents::SourceEvents(Log* log)
    : vms_("source", log),
      sessions_(log, kPeerLinesPerSecond, Clock::Monotonic()),
      streams_(log, kPeerLinesPerSecond, Clock::Monotonic()) {}

DataPlaneObserver SourceEvents::Observer() {
  return {
      .session = [this](const SessionAttempt& attempt) { Session(attempt); },
      .stream_ended =
          [this](DataPlaneLane lane, const absl::Status& status) {
            StreamEnded(lane, status);
          }};
}

void SourceEvents::Session(const SessionAttempt& attempt) {
  attempts_.fetch_add(1, std::memory_order_relaxed);
  if (!attempt.status.ok()) refusals_.fetch_add(1, std::memory_order_relaxed);
  LogRecord record = {LogSeverity::kInfo, "a destination has opened a session",
                      FieldsOf(attempt)};
  if (!attempt.status.ok()) {
    record.severity = LogSeverity::kWarning;
    record.sentence = absl::StrCat("a destination is refused a session: ",
                                   attempt.status.message());
  }
  sessions_.Write(std::move(record));
}

void SourceEvents::StreamEnded(DataPlaneLane lane, const absl::Status& status) {
  LaneCounters& counters = lanes_[static_cast<size_t>(lane)];
  counters.ended.fetch_add(1, std::memory_order_relaxed);
  if (status.ok()) return;
  counters.failed.fetch_add(1, std::memory_order_relaxed);
  streams_.Write({LogSeverity::kWarning,
                  absl::StrCat("a stream has ended: ", status.message()),
                  {{"LANE", NameOf(lane)}}});
}

void SourceEvents::AddMetrics(MetricFamilies& families) const {
  vms_.AddMetrics(families);
  families.Counter("postcopy_session_attempts_total",
                   "Sessions that destinations asked for.", Load(attempts_));
  families.Counter("postcopy_session_refusals_total", "Of these, refused ones.",
                   Load(refusals_));
  for (const DataPlaneLane lane :
       {DataPlaneLane::kUrgent, DataPlaneLane::kBulk}) {
    const LaneCounters& counters = lanes_[static_cast<size_t>(lane)];
    const MetricLabels labels = {{"lane", NameOf(lane)}};
    families.Counter("postcopy_streams_ended_total",
                     "Streams of the data plane that have ended.",
                     Load(counters.ended), labels);
    families.Counter("postcopy_stream_failures_total",
                     "Of these, those that ended with an error.",
                     Load(counters.failed), labels);
  }
}

}  // namespace postcopy
