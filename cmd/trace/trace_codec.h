// A trace as the bytes of a file (proto/postcopy/v1/trace.proto).
#ifndef CMD_TRACE_TRACE_CODEC_H_
#define CMD_TRACE_TRACE_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cmd/trace/trace.h"

namespace postcopy {

inline constexpr absl::string_view kTraceMagic = "PCTRACE1";
inline constexpr uint32_t kTraceVersion = 1;
inline constexpr size_t kTraceBatchEventsMax = 4096;
// What the largest event takes, times the events of a batch, fits.
inline constexpr size_t kTraceRecordBytesMax = 512 << 10;
inline constexpr size_t kTraceFileBytesMax = 512 << 20;

// Makes the bytes of a trace piece by piece, so that who records one need not
// keep it. The bytes depend on nothing but what is passed. Not thread-safe.
class TraceEncoder {
 public:
  // Magic and header. REQUIRES: CheckTraceHeader says OK.
  std::string Begin(PageCount pages, const std::string& origin);
  // The next events, at most kTraceBatchEventsMax and at least one. REQUIRES:
  // TraceEventChecker takes them.
  std::string Append(absl::Span<const TraceEvent> events);
  // The trailer. Nothing after that.
  std::string End(uint64_t dropped, bool ended_early = false);

 private:
  std::string Counted(std::string bytes);

  uint64_t events_ = 0;
  uint32_t crc_ = 0;
};

// All of it. REQUIRES: CheckTrace says OK.
std::string EncodeTrace(const Trace& trace);

// Reads `bytes`, which anybody may have written. The message names the offset
// where it went wrong: INVALID_ARGUMENT for what is no trace or breaks a limit,
// FAILED_PRECONDITION for another version or page size, DATA_LOSS for a trace
// that ends too early or is damaged. Takes memory in proportion to `bytes`.
absl::StatusOr<Trace> DecodeTrace(absl::string_view bytes);

// The same for a file. NOT_FOUND, PERMISSION_DENIED, INTERNAL if it cannot be
// read or written. A file is replaced only by a whole one.
absl::StatusOr<Trace> ReadTraceFile(const std::string& path);
absl::Status WriteTraceFile(const std::string& path, const Trace& trace);

}  // namespace postcopy

#endif  // CMD_TRACE_TRACE_CODEC_H_
