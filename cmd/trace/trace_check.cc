#include "cmd/trace/trace_check.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace postcopy {

absl::Status CheckTraceHeader(uint64_t pages, const std::string& origin) {
  if (pages == 0 || pages > kTracePagesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a trace is of 1 to ", kTracePagesMax, " pages, this one of ", pages));
  }
  if (origin.size() > kTraceOriginBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("its origin takes ", origin.size(), " bytes; at most ",
                     kTraceOriginBytesMax, " are allowed"));
  }
  const bool printable = std::all_of(origin.begin(), origin.end(), [](char c) {
    return ' ' <= c && c <= '~';
  });
  if (printable) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "its origin must be one line of printable ASCII");
}

absl::Status TraceEventChecker::Check(const TraceEvent& event) {
  if (++events_ > kTraceEventsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "it has more than ", kTraceEventsMax, " events: cut it into several"));
  }
  if (event.page.value() >= pages_.value()) {
    return absl::InvalidArgumentError(absl::StrCat("page ", event.page.value(),
                                                   " of a VM with ",
                                                   pages_.value(), " pages"));
  }
  const uint64_t longest =
      *std::max_element(event.stages_ns.begin(), event.stages_ns.end());
  if (std::max(event.time_ns, longest) > kTraceTimeNanosMax) {
    return absl::InvalidArgumentError("a time of 2^53 ns or more");
  }
  if (event.time_ns < last_ns_) {
    return absl::InvalidArgumentError(
        absl::StrCat("time goes back from ", last_ns_, " to ", event.time_ns,
                     " ns: sort the events"));
  }
  last_ns_ = event.time_ns;
  threads_.insert(event.thread);
  if (threads_.size() > kTraceThreadsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("more than ", kTraceThreadsMax, " threads"));
  }
  return absl::OkStatus();
}

absl::Status CheckTrace(const Trace& trace) {
  absl::Status status = CheckTraceHeader(trace.pages.value(), trace.origin);
  TraceEventChecker checker(trace.pages);
  for (const TraceEvent& event : trace.events) {
    if (!status.ok()) break;
    status = checker.Check(event);
  }
  return status;
}

}  // namespace postcopy
