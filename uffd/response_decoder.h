// What the source says on the data plane, from the messages of the protocol to
// the types of the core.
#ifndef UFFD_RESPONSE_DECODER_H_
#define UFFD_RESPONSE_DECODER_H_

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/run_compression.h"
#include "postcopy/v1/data_plane.pb.h"
#include "uffd/page_source.h"
#include "uffd/source_connection.h"

namespace postcopy {

// Both decode what a peer sent that may be wrong or hostile. What comes out has
// a checksum that fits, and its runs have pages: 1 to kMaxRamBytes' worth, from
// a page-aligned offset. Whether they lie in the layout and whether their data
// is as long as they are, the receiver checks (DestinationVm).
//
// The result points into the message and into `runs`, whose content it replaces
// and whose memory it reuses: valid until either changes.
//
// INVALID_ARGUMENT: what a source of ours never sends. DATA_LOSS: bytes were
// damaged on the way.

// The pages of one answer. DATA_LOSS if the checksum of any run does not fit or
// one is compressed, which no run of the urgent lane is.
absl::StatusOr<absl::Span<const ReceivedRun>> DecodeUrgent(
    const v1::UrgentResponse& response, std::vector<ReceivedRun>& runs);

// One event. Pages whose checksum does not fit are left out and counted; a
// piece of the stale set whose checksum does not is DATA_LOSS. Runs may be
// compressed: then they point into `decompressor`, which has memory for one
// message. What does not decompress to its pages, or has an encoding that is
// not known, has no checksum that fits.
absl::StatusOr<BulkEvent> DecodeBulk(const v1::BulkResponse& response,
                                     std::vector<ReceivedRun>& runs,
                                     RunDecompressor& decompressor);

}  // namespace postcopy

#endif  // UFFD_RESPONSE_DECODER_H_
