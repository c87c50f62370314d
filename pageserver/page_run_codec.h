// Pages and sessions between the core's types and the wire's.
#ifndef PAGESERVER_PAGE_RUN_CODEC_H_
#define PAGESERVER_PAGE_RUN_CODEC_H_

#include <google/protobuf/repeated_field.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "pageserver/page_batch.h"
#include "pageserver/source_migration.h"
#include "postcopy/v1/data_plane.pb.h"

namespace postcopy {

// Replaces `runs` by those of `batch`, whose strings go with them: both sides
// keep their memory, so nothing is allocated once they are warm.
void EncodeRuns(PageBatch& batch,
                google::protobuf::RepeatedPtrField<v1::PageRun>* runs);

// The page at a RAM offset; INVALID_ARGUMENT if it is not page-aligned.
absl::StatusOr<PageIndex> DecodePage(uint64_t ram_offset_bytes);

// DATA_LOSS unless `numbers`, which are those of `request`, are as they were
// sent. An older destination does not say how that was.
template <typename Request>
absl::Status CheckNumbers(const Request& request,
                          absl::Span<const uint64_t> numbers) {
  if (!request.has_crc32c() || NumbersCrc32c(numbers) == request.crc32c()) {
    return absl::OkStatus();
  }
  return absl::DataLossError(
      "a request did not arrive as it was sent: does the network change what "
      "it carries (TLS would notice)?");
}

SessionKey KeyOf(const v1::SessionRef& session);

// INVALID_ARGUMENT as RamLayout::Create.
absl::StatusOr<RamLayout> DecodeLayout(const v1::RamLayout& layout);

}  // namespace postcopy

#endif  // PAGESERVER_PAGE_RUN_CODEC_H_
