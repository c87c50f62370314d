// Whatever bytes come as a trace: they are refused with an offset, or are a
// trace that keeps its limits and passes through every format unchanged.
//
// The first byte says what the rest is:
//   0       a file
//   1       a file without its trailer, which is added, and fits
//   2       lines of CSV
//   3       lines of JSON
//   others  as 1, but the trailer is read from the first 8 bytes of the rest:
//           how much the count and the checksum are wrong
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cmd/trace/trace.h"
#include "cmd/trace/trace_check.h"
#include "cmd/trace/trace_codec.h"
#include "cmd/trace/trace_text.h"
#include "dirtytrack/check.h"
#include "dirtytrack/page_checksum.h"
#include "google/protobuf/io/coded_stream.h"
#include "postcopy/v1/trace.pb.h"
#include "tests/fuzz/byte_reader.h"

namespace postcopy {
namespace {

using google::protobuf::io::CodedInputStream;

// How many events there are in the records of `bytes`, as far as they can be
// read.
uint64_t CountEvents(absl::string_view bytes) {
  uint64_t events = 0;
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size()));
  if (!in.Skip(static_cast<int>(kTraceMagic.size()))) return 0;
  uint32_t length;
  while (in.ReadVarint32(&length)) {
    const auto limit = in.PushLimit(static_cast<int>(length));
    v1::TraceRecord record;
    if (!record.ParseFromCodedStream(&in)) break;
    in.PopLimit(limit);
    events += static_cast<uint64_t>(record.batch().events_size());
  }
  return events;
}

std::string WithTrailer(std::string bytes, uint32_t wrong_events,
                        uint32_t wrong_crc) {
  v1::TraceRecord record;
  record.mutable_trailer()->set_events(CountEvents(bytes) + wrong_events);
  record.mutable_trailer()->set_crc32c(
      Crc32c({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}) +
      wrong_crc);
  const std::string trailer = record.SerializeAsString();
  bytes.push_back(static_cast<char>(trailer.size()));
  return bytes + trailer;
}

void CheckSame(const absl::StatusOr<Trace>& again, const Trace& trace) {
  POSTCOPY_CHECK(again.ok());
  POSTCOPY_CHECK(*again == trace);
}

void CheckTaken(const Trace& trace) {
  POSTCOPY_CHECK(CheckTrace(trace).ok());
  CheckSame(DecodeTrace(EncodeTrace(trace)), trace);
  CheckSame(TraceFromCsv(TraceToCsv(trace)), trace);
  CheckSame(TraceFromJson(TraceToJson(trace)), trace);
}

absl::StatusOr<Trace> Read(ByteReader reader) {
  const uint8_t form = reader.Byte();
  uint32_t wrong_events = 0;
  uint32_t wrong_crc = 0;
  if (form > 3) {
    const uint64_t wrong = reader.EightBytes();
    wrong_events = static_cast<uint32_t>(wrong);
    wrong_crc = static_cast<uint32_t>(wrong >> 32);
  }
  const std::string rest(reinterpret_cast<const char*>(reader.rest().data()),
                         reader.rest().size());
  if (form == 2) return TraceFromCsv(rest);
  if (form == 3) return TraceFromJson(rest);
  const absl::StatusOr<Trace> trace = DecodeTrace(
      form == 0 ? rest : WithTrailer(rest, wrong_events, wrong_crc));
  if (!trace.ok()) {
    POSTCOPY_CHECK(absl::StrContains(trace.status().message(), "at byte "));
  }
  // Nobody is taken at his word who says something else of the same bytes.
  POSTCOPY_CHECK(!trace.ok() || (wrong_events == 0 && wrong_crc == 0));
  return trace;
}

}  // namespace
}  // namespace postcopy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::StatusOr<postcopy::Trace> trace =
      postcopy::Read(postcopy::ByteReader(absl::MakeConstSpan(data, size)));
  if (trace.ok()) postcopy::CheckTaken(*trace);
  return 0;
}
