#include "cmd/trace/trace_codec.h"

#include <isa-l.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cmd/trace/trace_check.h"
#include "cmd/trace/trace_message.h"
#include "dirtytrack/check.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "postcopy/v1/trace.pb.h"

namespace postcopy {
namespace {

using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

// The CRC-32C of what `crc` is of and `bytes` behind it.
uint32_t ExtendCrc32c(uint32_t crc, absl::string_view bytes) {
  // ISA-L takes an int, and declares what it only reads without const.
  while (!bytes.empty()) {
    const absl::string_view part = bytes.substr(0, size_t{1} << 30);
    auto* const data =
        reinterpret_cast<uint8_t*>(const_cast<char*>(part.data()));
    crc = ~crc32_iscsi(data, static_cast<int>(part.size()), ~crc);
    bytes.remove_prefix(part.size());
  }
  return crc;
}

// A record behind its length.
std::string Framed(const v1::TraceRecord& record) {
  const size_t length = record.ByteSizeLong();
  POSTCOPY_CHECK(length <= kTraceRecordBytesMax);
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    CodedOutputStream out(&stream);
    out.WriteVarint32(static_cast<uint32_t>(length));
    record.SerializeToCodedStream(&out);
  }
  return bytes;
}

// Reads one trace from its first byte to its last.
class Decoder {
 public:
  explicit Decoder(absl::string_view bytes) : bytes_(bytes) {}

  absl::StatusOr<Trace> Decode() {
    absl::Status status = DecodeAll();
    if (status.ok()) return std::move(trace_);
    return absl::Status(status.code(),
                        absl::StrCat("at byte ", at_, " of ", bytes_.size(),
                                     ": ", status.message()));
  }

 private:
  absl::Status DecodeAll();
  // Reads the record at at_ into record_; next_ is behind it.
  absl::Status Next();
  absl::Status TakeHeader();
  absl::Status TakeBatch();
  absl::Status TakeTrailer();

  const absl::string_view bytes_;
  size_t at_ = 0;    // of the record that is looked at
  size_t next_ = 0;  // of the one behind it
  v1::TraceRecord record_;
  Trace trace_;
};

absl::Status Decoder::DecodeAll() {
  if (bytes_.size() > kTraceFileBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a trace has at most ", kTraceFileBytesMax, " bytes"));
  }
  if (bytes_.substr(0, kTraceMagic.size()) != kTraceMagic) {
    return absl::InvalidArgumentError("this is no trace");
  }
  next_ = kTraceMagic.size();
  absl::Status status = Next();
  if (status.ok()) status = TakeHeader();
  if (!status.ok()) return status;
  TraceEventChecker checker(trace_.pages);
  for (;;) {
    status = Next();
    if (!status.ok()) return status;
    if (!record_.has_batch()) break;
    const size_t before = trace_.events.size();
    status = TakeBatch();
    for (size_t i = before; status.ok() && i < trace_.events.size(); ++i) {
      status = checker.Check(trace_.events[i]);
    }
    if (!status.ok()) return status;
  }
  return TakeTrailer();
}

absl::Status Decoder::Next() {
  at_ = next_;
  const absl::string_view rest = bytes_.substr(at_);
  if (rest.empty()) {
    return absl::DataLossError(
        "the trace ends without a trailer: whoever wrote it was stopped");
  }
  CodedInputStream in(reinterpret_cast<const uint8_t*>(rest.data()),
                      static_cast<int>(rest.size()));
  uint32_t length;
  if (!in.ReadVarint32(&length)) {
    return absl::DataLossError("the trace ends within a length");
  }
  if (length > kTraceRecordBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a record of ", length, " bytes; at most ", kTraceRecordBytesMax));
  }
  const size_t begin = static_cast<size_t>(in.CurrentPosition());
  if (length > rest.size() - begin) {
    return absl::DataLossError("the trace ends within a record");
  }
  record_.Clear();
  if (!record_.ParseFromArray(rest.data() + begin, static_cast<int>(length))) {
    return absl::DataLossError("a record that cannot be read");
  }
  next_ = at_ + begin + length;
  return absl::OkStatus();
}

absl::Status Decoder::TakeHeader() {
  if (!record_.has_header()) {
    return absl::InvalidArgumentError("the first record is no header");
  }
  return DecodeTraceHeader(record_.header(), &trace_);
}

absl::Status Decoder::TakeBatch() {
  const v1::TraceBatch& batch = record_.batch();
  const auto count = static_cast<size_t>(batch.events_size());
  if (count == 0 || count > kTraceBatchEventsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a batch of ", count, " events; it has 1 to ", kTraceBatchEventsMax));
  }
  for (const v1::TraceEvent& encoded : batch.events()) {
    absl::StatusOr<TraceEvent> event = DecodeTraceEvent(encoded);
    if (!event.ok()) return event.status();
    trace_.events.push_back(*event);
  }
  return absl::OkStatus();
}

absl::Status Decoder::TakeTrailer() {
  if (!record_.has_trailer()) {
    return absl::InvalidArgumentError("a record that is no batch, no trailer");
  }
  const v1::TraceTrailer& trailer = record_.trailer();
  if (trailer.crc32c() != ExtendCrc32c(0, bytes_.substr(0, at_))) {
    return absl::DataLossError("the trace is damaged: its checksum is wrong");
  }
  if (trailer.events() != trace_.events.size()) {
    return absl::DataLossError(absl::StrCat("the trailer counts ",
                                            trailer.events(), " events of ",
                                            trace_.events.size()));
  }
  if (next_ != bytes_.size()) {
    return absl::InvalidArgumentError("there are bytes behind the trailer");
  }
  trace_.dropped = trailer.dropped();
  trace_.ended_early = trailer.ended_early();
  return absl::OkStatus();
}

absl::Status Annotate(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("trace ", path, ": ", status.message()));
}

absl::Status FileError(const std::string& path, const char* what) {
  return Annotate(path, absl::ErrnoToStatus(errno, what));
}

}  // namespace

std::string TraceEncoder::Counted(std::string bytes) {
  crc_ = ExtendCrc32c(crc_, bytes);
  return bytes;
}

std::string TraceEncoder::Begin(PageCount pages, const std::string& origin) {
  v1::TraceRecord record;
  record.mutable_header()->set_version(kTraceVersion);
  record.mutable_header()->set_pages(pages.value());
  record.mutable_header()->set_page_size_bytes(kPageSize);
  record.mutable_header()->set_origin(origin);
  return Counted(absl::StrCat(kTraceMagic, Framed(record)));
}

std::string TraceEncoder::Append(absl::Span<const TraceEvent> events) {
  POSTCOPY_CHECK(!events.empty() && events.size() <= kTraceBatchEventsMax);
  v1::TraceRecord record;
  for (const TraceEvent& event : events) {
    EncodeTraceEvent(event, *record.mutable_batch()->add_events());
  }
  events_ += events.size();
  return Counted(Framed(record));
}

std::string TraceEncoder::End(uint64_t dropped, bool ended_early) {
  v1::TraceRecord record;
  record.mutable_trailer()->set_events(events_);
  record.mutable_trailer()->set_dropped(dropped);
  record.mutable_trailer()->set_crc32c(crc_);
  record.mutable_trailer()->set_ended_early(ended_early);
  return Framed(record);
}

std::string EncodeTrace(const Trace& trace) {
  TraceEncoder encoder;
  std::string bytes = encoder.Begin(trace.pages, trace.origin);
  absl::Span<const TraceEvent> rest = trace.events;
  while (!rest.empty()) {
    const auto batch = rest.subspan(0, kTraceBatchEventsMax);
    bytes += encoder.Append(batch);
    rest.remove_prefix(batch.size());
  }
  return bytes += encoder.End(trace.dropped, trace.ended_early);
}

absl::StatusOr<Trace> DecodeTrace(absl::string_view bytes) {
  return Decoder(bytes).Decode();
}

absl::StatusOr<Trace> ReadTraceFile(const std::string& path) {
  struct stat about;
  if (::stat(path.c_str(), &about) != 0) return FileError(path, "cannot open");
  if (!S_ISREG(about.st_mode)) {
    return Annotate(path, absl::InvalidArgumentError("it is no regular file"));
  }
  if (static_cast<uint64_t>(about.st_size) > kTraceFileBytesMax) {
    return Annotate(path, absl::InvalidArgumentError(absl::StrCat(
                              "a trace has at most ", kTraceFileBytesMax,
                              " bytes, this file ", about.st_size)));
  }
  std::ifstream file(path, std::ios::binary);
  std::string bytes(static_cast<size_t>(about.st_size), '\0');
  if (!file.is_open() ||
      !file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    return FileError(path, "cannot read");
  }
  absl::StatusOr<Trace> trace = DecodeTrace(bytes);
  if (!trace.ok()) return Annotate(path, trace.status());
  return trace;
}

absl::Status WriteTraceFile(const std::string& path, const Trace& trace) {
  const std::string bytes = EncodeTrace(trace);
  const std::string beside = absl::StrCat(path, ".new");
  std::ofstream file(beside, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file || std::rename(beside.c_str(), path.c_str()) != 0) {
    return FileError(path, "cannot write");
  }
  return absl::OkStatus();
}

}  // namespace postcopy
