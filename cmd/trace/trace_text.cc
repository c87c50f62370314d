#include "cmd/trace/trace_text.h"

#include <array>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "cmd/postcopyctl/json_writer.h"
#include "cmd/trace/trace_check.h"
#include "cmd/trace/trace_codec.h"
#include "cmd/trace/trace_message.h"
#include "google/protobuf/util/json_util.h"
#include "postcopy/v1/trace.pb.h"

namespace postcopy {
namespace {

constexpr absl::string_view kColumns =
    "time_ns,page,thread,kind,reading_ns,asking_ns,answering_ns,installing_ns";
constexpr std::array<absl::string_view, 4> kKindNames = {
    "read", "write", "minor", "write-protect"};
constexpr std::array<absl::string_view, 4> kJsonKinds = {
    "TRACE_EVENT_KIND_READ", "TRACE_EVENT_KIND_WRITE", "TRACE_EVENT_KIND_MINOR",
    "TRACE_EVENT_KIND_WRITE_PROTECT"};
constexpr size_t kCsvFields = 8;
// Behind "dropped=N".
constexpr absl::string_view kEndedEarly = ",ended_early";

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(what);
}

// "key=NUMBER" with that key.
bool ParseSetting(absl::string_view text, absl::string_view key,
                  uint64_t* value) {
  return absl::ConsumePrefix(&text, key) && absl::ConsumePrefix(&text, "=") &&
         absl::SimpleAtoi(text, value);
}

absl::Status TakeCsvHeader(absl::string_view line, Trace* trace) {
  const std::vector<absl::string_view> parts =
      absl::StrSplit(line, absl::MaxSplits(' ', 3));
  absl::string_view dropped = parts.size() < 3 ? "" : parts[2];
  trace->ended_early = absl::ConsumeSuffix(&dropped, kEndedEarly);
  uint64_t pages;
  if (parts.size() < 3 || parts[0] != "#" ||
      !ParseSetting(parts[1], "pages", &pages) ||
      !ParseSetting(dropped, "dropped", &trace->dropped)) {
    return Malformed("must begin with \"# pages=N dropped=N\"");
  }
  trace->pages = PageCount(pages);
  if (parts.size() == 4) trace->origin = std::string(parts[3]);
  return CheckTraceHeader(pages, trace->origin);
}

absl::StatusOr<TouchKind> ParseKind(absl::string_view name) {
  for (size_t i = 0; i < kKindNames.size(); ++i) {
    if (kKindNames[i] == name) return static_cast<TouchKind>(i);
  }
  return Malformed(absl::StrCat("\"", name, "\" is no kind of a touch: ",
                                absl::StrJoin(kKindNames, ", ")));
}

absl::StatusOr<TraceEvent> ParseCsvEvent(absl::string_view line) {
  const std::vector<absl::string_view> fields = absl::StrSplit(line, ',');
  if (fields.size() != kCsvFields) {
    return Malformed(
        absl::StrCat("has ", fields.size(), " fields, not ", kCsvFields));
  }
  TraceEvent event;
  uint64_t page = 0;
  bool good = absl::SimpleAtoi(fields[0], &event.time_ns) &&
              absl::SimpleAtoi(fields[1], &page) &&
              absl::SimpleAtoi(fields[2], &event.thread);
  for (size_t i = 0; i < event.stages_ns.size(); ++i) {
    good = good && absl::SimpleAtoi(fields[4 + i], &event.stages_ns[i]);
  }
  if (!good) return Malformed("has a field that is no number");
  event.page = PageIndex(page);
  absl::StatusOr<TouchKind> kind = ParseKind(fields[3]);
  if (!kind.ok()) return kind.status();
  event.kind = *kind;
  return event;
}

// Calls take(line) for each line that is not empty, until that fails.
absl::Status ForEachLine(
    absl::string_view text,
    const std::function<absl::Status(absl::string_view)>& take) {
  uint64_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripSuffix(line, "\r");
    if (line.empty()) continue;
    const absl::Status status = take(line);
    if (!status.ok()) {
      return absl::Status(
          status.code(), absl::StrCat("line ", number, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

// Takes the lines of a trace in JSON, one by one.
class JsonReader {
 public:
  absl::Status Take(absl::string_view line) {
    v1::TraceRecord record;
    const auto parsed =
        google::protobuf::util::JsonStringToMessage(std::string(line), &record);
    if (!parsed.ok()) return Malformed(std::string(parsed.message()));
    if (ended_) return Malformed("there is something behind the trailer");
    if (begun_ == record.has_header()) {
      return Malformed("the header must be the first line, and only that");
    }
    if (record.has_header()) {
      begun_ = true;
      return DecodeTraceHeader(record.header(), &trace_);
    }
    ended_ = record.has_trailer();
    trace_.dropped = record.trailer().dropped();
    trace_.ended_early = record.trailer().ended_early();
    for (const v1::TraceEvent& encoded : record.batch().events()) {
      absl::StatusOr<TraceEvent> event = DecodeTraceEvent(encoded);
      if (!event.ok()) return event.status();
      trace_.events.push_back(*event);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Trace> End() {
    if (!ended_) return Malformed("there is no trailer at its end");
    const absl::Status valid = CheckTrace(trace_);
    if (!valid.ok()) return valid;
    return std::move(trace_);
  }

 private:
  bool begun_ = false;
  bool ended_ = false;
  Trace trace_;
};

JsonObject EventJson(const TraceEvent& event) {
  JsonObject json;
  json.Add("timeNs", event.time_ns)
      .Add("page", event.page.value())
      .Add("thread", event.thread)
      .Add("kind", kJsonKinds[static_cast<size_t>(event.kind)])
      .Add("readingNs", event.stages_ns[0])
      .Add("askingNs", event.stages_ns[1])
      .Add("answeringNs", event.stages_ns[2])
      .Add("installingNs", event.stages_ns[3]);
  return json;
}

}  // namespace

absl::string_view TouchKindName(TouchKind kind) {
  return kKindNames[static_cast<size_t>(kind)];
}

std::string TraceToCsv(const Trace& trace) {
  std::string text =
      absl::StrCat("# pages=", trace.pages.value(), " dropped=", trace.dropped,
                   trace.ended_early ? kEndedEarly : "", " ", trace.origin,
                   "\n", kColumns, "\n");
  for (const TraceEvent& event : trace.events) {
    absl::StrAppend(&text, event.time_ns, ",", event.page.value(), ",",
                    event.thread, ",", TouchKindName(event.kind), ",",
                    absl::StrJoin(event.stages_ns, ","), "\n");
  }
  return text;
}

std::string TraceToJson(const Trace& trace) {
  JsonObject header;
  header.Add("version", kTraceVersion)
      .Add("pages", trace.pages.value())
      .Add("pageSizeBytes", kPageSize)
      .Add("origin", trace.origin);
  std::string text = JsonObject().Add("header", header).ToString() + "\n";
  for (const TraceEvent& event : trace.events) {
    JsonObject batch;
    batch.Add("events", std::vector<JsonObject>{EventJson(event)});
    text += JsonObject().Add("batch", batch).ToString() + "\n";
  }
  JsonObject trailer;
  trailer.Add("events", uint64_t{trace.events.size()})
      .Add("dropped", trace.dropped);
  if (trace.ended_early) trailer.Add("endedEarly", true);
  return text + JsonObject().Add("trailer", trailer).ToString() + "\n";
}

absl::StatusOr<Trace> TraceFromCsv(absl::string_view text) {
  Trace trace;
  int lines = 0;
  const absl::Status status =
      ForEachLine(text, [&](absl::string_view line) -> absl::Status {
        if (lines++ == 0) return TakeCsvHeader(line, &trace);
        if (lines == 2) {
          if (line == kColumns) return absl::OkStatus();
          return Malformed(absl::StrCat("must be ", kColumns));
        }
        absl::StatusOr<TraceEvent> event = ParseCsvEvent(line);
        if (!event.ok()) return event.status();
        trace.events.push_back(*event);
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  if (lines == 0) return Malformed("there is nothing in it");
  const absl::Status valid = CheckTrace(trace);
  if (!valid.ok()) return valid;
  return trace;
}

absl::StatusOr<Trace> TraceFromJson(absl::string_view text) {
  JsonReader reader;
  absl::Status status = ForEachLine(
      text, [&](absl::string_view line) { return reader.Take(line); });
  if (!status.ok()) return status;
  return reader.End();
}

}  // namespace postcopy
