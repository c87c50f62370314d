#include "cmd/trace/trace_message.h"

#include "absl/strings/str_cat.h"
#include "cmd/trace/trace_check.h"
#include "cmd/trace/trace_codec.h"

namespace postcopy {
namespace {

v1::TraceEventKind KindOf(TouchKind kind) {
  return static_cast<v1::TraceEventKind>(static_cast<int>(kind) + 1);
}
static_assert(v1::TRACE_EVENT_KIND_WRITE_PROTECT ==
              static_cast<int>(TouchKind::kWriteProtect) + 1);

}  // namespace

void EncodeTraceEvent(const TraceEvent& event, v1::TraceEvent& encoded) {
  encoded.set_time_ns(event.time_ns);
  encoded.set_page(event.page.value());
  encoded.set_thread(event.thread);
  encoded.set_kind(KindOf(event.kind));
  encoded.set_reading_ns(event.stages_ns[0]);
  encoded.set_asking_ns(event.stages_ns[1]);
  encoded.set_answering_ns(event.stages_ns[2]);
  encoded.set_installing_ns(event.stages_ns[3]);
}

absl::StatusOr<TraceEvent> DecodeTraceEvent(const v1::TraceEvent& encoded) {
  if (encoded.kind() < v1::TRACE_EVENT_KIND_READ ||
      encoded.kind() > v1::TRACE_EVENT_KIND_WRITE_PROTECT) {
    return absl::InvalidArgumentError(
        absl::StrCat("an event of kind ", encoded.kind(), ", which is none"));
  }
  return TraceEvent{
      .time_ns = encoded.time_ns(),
      .page = PageIndex(encoded.page()),
      .thread = encoded.thread(),
      .kind = static_cast<TouchKind>(encoded.kind() - 1),
      .stages_ns = {encoded.reading_ns(), encoded.asking_ns(),
                    encoded.answering_ns(), encoded.installing_ns()}};
}

absl::Status DecodeTraceHeader(const v1::TraceHeader& header, Trace* trace) {
  if (header.version() != kTraceVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("a trace of version ", header.version(),
                     "; this program knows version ", kTraceVersion));
  }
  if (header.page_size_bytes() != kPageSize) {
    return absl::FailedPreconditionError(
        absl::StrCat("it counts pages of ", header.page_size_bytes(),
                     " bytes, this program of ", kPageSize));
  }
  trace->pages = PageCount(header.pages());
  trace->origin = header.origin();
  return CheckTraceHeader(header.pages(), header.origin());
}

}  // namespace postcopy
