#include "uffd/response_decoder.h"

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"

namespace postcopy {
namespace {

// Pages of one run that are looked at: more than a layout can have is no run.
constexpr uint64_t kRunPagesMax = kMaxRamBytes.value() / kPageSize;

absl::Span<const uint8_t> AsBytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

bool IsRun(RamOffset at, uint64_t pages) {
  return IsPageAligned(at) && pages != 0 && pages <= kRunPagesMax;
}

// Every field of `messages`, not of messages in them, is one that this
// destination has asked for. A damaged tag makes another field of it, which
// would else be left out without a word: pages would be taken to have come.
template <typename... Messages>
bool AllKnown(const Messages&... messages) {
  return (messages.GetReflection()->GetUnknownFields(messages).empty() && ...);
}

absl::Status UnknownField() {
  return absl::DataLossError(
      "it sent a field that nobody has asked for: does the network change what "
      "it carries (TLS would notice)?");
}

absl::Status NoRun(RamOffset at, uint64_t pages) {
  return absl::InvalidArgumentError(
      absl::StrCat("the source sent a run of ", pages, " pages at ",
                   ToString(at), ", which is none"));
}

// The content of `run`, which points into it or into `decompressor`. DATA_LOSS
// if it cannot be decoded; null: nothing compressed is due.
absl::StatusOr<absl::Span<const uint8_t>> ContentOf(
    const v1::PageRun& run, RunDecompressor* decompressor) {
  const absl::Span<const uint8_t> data = AsBytes(run.data());
  if (run.encoding() == v1::PAGE_ENCODING_UNSPECIFIED) return data;
  if (run.encoding() != v1::PAGE_ENCODING_ZSTD || decompressor == nullptr) {
    return absl::DataLossError("a run has an encoding that is not due");
  }
  return decompressor->Decompress(data, run.page_count());
}

// Decodes runs whose checksum fits; counts the others. `runs`, to which
// `pages` then points, points into `encoded` or `decompressor`.
// INVALID_ARGUMENT for a run that is none.
absl::Status DecodeRuns(
    const google::protobuf::RepeatedPtrField<v1::PageRun>& encoded,
    RunDecompressor* decompressor, std::vector<ReceivedRun>& runs,
    PagesArrived& pages) {
  runs.clear();
  pages = PagesArrived();
  if (decompressor != nullptr) decompressor->Clear();
  for (const v1::PageRun& run : encoded) {
    const RamOffset at(run.ram_offset_bytes());
    const auto data = ContentOf(run, decompressor);
    const bool compressed = run.encoding() != v1::PAGE_ENCODING_UNSPECIFIED;
    if (!data.ok() && !absl::IsDataLoss(data.status())) return data.status();
    if (!data.ok() || !AllKnown(run) ||
        PlacedCrc32c(at, run.page_count(), *data) != run.crc32c()) {
      ++pages.damaged_runs;
      if (compressed) ++pages.damaged_compressed_runs;
      continue;
    }
    pages.decompressed |= compressed;
    if (!IsRun(at, run.page_count())) return NoRun(at, run.page_count());
    runs.push_back({{PageOf(at), PageCount(run.page_count())}, *data});
  }
  return absl::OkStatus();
}

absl::StatusOr<BulkEvent> DecodePages(const v1::PageBatch& batch,
                                      std::vector<ReceivedRun>& runs,
                                      RunDecompressor& decompressor) {
  PagesArrived pages;
  absl::Status status = DecodeRuns(batch.runs(), &decompressor, runs, pages);
  if (!status.ok()) return status;
  if (!AllKnown(batch)) ++pages.damaged_runs;
  pages.runs = runs;
  return pages;
}

absl::StatusOr<BulkEvent> DecodeStale(const v1::StaleBitmap& piece) {
  const RamOffset at(piece.ram_offset_bytes());
  const absl::Span<const uint8_t> bits = AsBytes(piece.bits());
  if (PlacedCrc32c(at, bits.size(), bits) != piece.crc32c()) {
    return absl::DataLossError("the checksum of the stale set did not fit");
  }
  if (at.value() % (64 * kPageSize) != 0 || bits.size() % 8 != 0) {
    return absl::InvalidArgumentError(
        "the source sent a piece of the stale set that is not aligned");
  }
  return StalePiece{PageOf(at), bits};
}

absl::StatusOr<BulkEvent> DecodeDirtied(const v1::RecentlyDirtied& dirtied) {
  const int count = dirtied.ram_offsets_bytes_size();
  if (count != dirtied.page_counts_size() || count == 0 ||
      static_cast<size_t>(count) > kReceivedDirtiedRunsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the source sent ", count, " offsets and ", dirtied.page_counts_size(),
        " counts of recently dirtied pages; there must be 1 to ",
        kReceivedDirtiedRunsMax, " of each, as many of one as of the other"));
  }
  PagesDirtied event;
  event.runs.reserve(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    const RamOffset at(dirtied.ram_offsets_bytes(i));
    const uint64_t pages = dirtied.page_counts(i);
    if (!IsRun(at, pages)) return NoRun(at, pages);
    event.runs.push_back({PageOf(at), PageCount(pages)});
  }
  return event;
}

}  // namespace

absl::StatusOr<absl::Span<const ReceivedRun>> DecodeUrgent(
    const v1::UrgentResponse& response, std::vector<ReceivedRun>& runs) {
  if (!AllKnown(response)) return UnknownField();
  PagesArrived pages;
  absl::Status status =
      DecodeRuns(response.runs(), /*decompressor=*/nullptr, runs, pages);
  if (!status.ok()) return status;
  if (pages.damaged_runs > 0) {
    return absl::DataLossError("the checksum of a faulted page did not fit");
  }
  return absl::MakeConstSpan(runs);
}

absl::StatusOr<BulkEvent> DecodeBulk(const v1::BulkResponse& response,
                                     std::vector<ReceivedRun>& runs,
                                     RunDecompressor& decompressor) {
  if (!AllKnown(response, response.round_end(), response.stale(),
                response.early_discard(), response.device_state(),
                response.switch_over(), response.commit(),
                response.recently_dirtied())) {
    return UnknownField();
  }
  switch (response.message_case()) {
    case v1::BulkResponse::kPages:
      return DecodePages(response.pages(), runs, decompressor);
    case v1::BulkResponse::kRoundEnd:
      return RoundEnded{response.round_end().round()};
    case v1::BulkResponse::kStale:
      return DecodeStale(response.stale());
    case v1::BulkResponse::kEarlyDiscard:
      return EarlyDiscard{response.early_discard().round()};
    case v1::BulkResponse::kDeviceState:
      return DeviceStatePiece{{response.device_state().data().data(),
                               response.device_state().data().size()}};
    case v1::BulkResponse::kSwitchOver:
      return SwitchOverComplete{PageCount(response.switch_over().stale_pages()),
                                response.switch_over().device_state_bytes(),
                                response.switch_over().device_state_crc32c()};
    case v1::BulkResponse::kCommit:
      return Committed{};
    case v1::BulkResponse::kRecentlyDirtied:
      return DecodeDirtied(response.recently_dirtied());
    default:
      return absl::InvalidArgumentError(
          "the source sent a bulk message without content");
  }
}

}  // namespace postcopy
