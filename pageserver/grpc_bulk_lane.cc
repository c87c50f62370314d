#include "pageserver/grpc_bulk_lane.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/page_checksum.h"
#include "pageserver/page_run_codec.h"

namespace postcopy {
namespace {

// Bytes in one message that is not pages: small enough not to need a larger
// limit than pages do.
constexpr size_t kPieceBytes = 256 << 10;

// What is kept for the next batch. A string that once held a whole batch stays
// that large, and in time every one of a batch's runs may have.
constexpr size_t kRetainedBytesMax = 2 << 20;

absl::Status StreamEnded() {
  return absl::UnavailableError("the bulk stream has ended");
}

absl::Span<const uint8_t> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

}  // namespace

absl::Status GrpcBulkLane::Write(const v1::BulkResponse& response) {
  return stream_->Write(response) ? absl::OkStatus() : StreamEnded();
}

absl::StatusOr<SessionKey> GrpcBulkLane::ReceiveAttach() {
  if (!stream_->Read(&request_)) return StreamEnded();
  if (!request_.has_attach()) {
    return absl::InvalidArgumentError(
        "the first message of a bulk stream must be attach");
  }
  session_ = KeyOf(request_.session());
  return session_;
}

absl::Status GrpcBulkLane::SendPages(PageBatch& batch) {
  EncodeRuns(batch, pages_.mutable_pages()->mutable_runs());
  absl::Status status = Write(pages_);
  if (pages_.SpaceUsedLong() > kRetainedBytesMax) pages_ = v1::BulkResponse();
  return status;
}

absl::Status GrpcBulkLane::SendRoundEnd(uint32_t round) {
  v1::BulkResponse response;
  response.mutable_round_end()->set_round(round);
  return Write(response);
}

absl::Status GrpcBulkLane::SendStalePiece(PageBitmapView stale, size_t word,
                                          size_t words) {
  std::string bits(words * sizeof(uint64_t), '\0');
  for (size_t i = 0; i < words; ++i) {
    const uint64_t value = stale.LoadWord(word + i);
    std::copy_n(reinterpret_cast<const char*>(&value), sizeof(value),
                bits.data() + i * sizeof(value));
  }
  const RamOffset at =
      OffsetOf(PageIndex(word * PageBitmapView::kPagesPerWord));
  v1::BulkResponse response;
  v1::StaleBitmap* piece = response.mutable_stale();
  piece->set_ram_offset_bytes(at.value());
  piece->set_crc32c(PlacedCrc32c(at, bits.size(), AsBytes(bits)));
  piece->set_bits(std::move(bits));
  return Write(response);
}

absl::Status GrpcBulkLane::SendStale(PageBitmapView stale) {
  constexpr size_t kPieceWords = kPieceBytes / sizeof(uint64_t);
  size_t word = 0;
  // What is clean is not sent: from one stale page to the next piece.
  while (true) {
    const auto run =
        stale.NextSetRun(PageIndex(word * PageBitmapView::kPagesPerWord));
    if (!run.has_value()) return absl::OkStatus();
    word = run->first.value() / PageBitmapView::kPagesPerWord;
    const size_t words = std::min(kPieceWords, stale.word_count() - word);
    if (absl::Status s = SendStalePiece(stale, word, words); !s.ok()) return s;
    word += words;
  }
}

absl::Status GrpcBulkLane::SendEarlyDiscard(uint32_t round) {
  v1::BulkResponse response;
  response.mutable_early_discard()->set_round(round);
  return Write(response);
}

absl::Status GrpcBulkLane::SendSwitchOver(PageCount stale,
                                          absl::string_view device_state) {
  for (absl::string_view rest = device_state; !rest.empty();) {
    const absl::string_view piece = rest.substr(0, kPieceBytes);
    v1::BulkResponse response;
    response.mutable_device_state()->set_data(piece.data(), piece.size());
    if (absl::Status s = Write(response); !s.ok()) return s;
    rest.remove_prefix(piece.size());
  }
  v1::BulkResponse response;
  v1::SwitchOver* end = response.mutable_switch_over();
  end->set_stale_pages(stale.value());
  end->set_device_state_bytes(device_state.size());
  end->set_device_state_crc32c(Crc32c(AsBytes(device_state)));
  return Write(response);
}

absl::Status GrpcBulkLane::SendCommit() {
  v1::BulkResponse response;
  response.mutable_commit();
  return Write(response);
}

absl::Status GrpcBulkLane::SendRecentlyDirtied(absl::Span<const PageRun> runs) {
  v1::BulkResponse response;
  v1::RecentlyDirtied* dirtied = response.mutable_recently_dirtied();
  for (const PageRun& run : runs) {
    dirtied->add_ram_offsets_bytes(OffsetOf(run.first).value());
    dirtied->add_page_counts(run.count.value());
  }
  return Write(response);
}

absl::StatusOr<BulkMessage> GrpcBulkLane::Receive() {
  if (!stream_->Read(&request_)) return StreamEnded();
  const SessionKey key = KeyOf(request_.session());
  if (key.id != session_.id || key.epoch != session_.epoch) {
    return absl::FailedPreconditionError(
        "a message of the bulk stream names another session or epoch");
  }
  switch (request_.message_case()) {
    case v1::BulkRequest::kRoundAck: {
      const v1::RoundAck& ack = request_.round_ack();
      absl::Status whole = CheckNumbers(ack, {ack.round(), ack.damaged_runs()});
      if (!whole.ok()) return whole;
      return RoundAck{ack.round(), ack.damaged_runs()};
    }
    case v1::BulkRequest::kSwitchOverReady:
      return SwitchOverReady{
          PageCount(request_.switch_over_ready().discarded_pages())};
    case v1::BulkRequest::kGuestResumed: {
      // Bounded, so that no sum with it overflows.
      const uint64_t us =
          std::min<uint64_t>(request_.guest_resumed().vmm_load_resume_us(),
                             uint64_t{3600} * 1000 * 1000);
      return GuestResumed{static_cast<int64_t>(us) * kNanosPerMicro};
    }
    case v1::BulkRequest::kFetch: {
      const v1::FetchRange& fetch = request_.fetch();
      absl::Status whole =
          CheckNumbers(fetch, {fetch.ram_offset_bytes(), fetch.page_count()});
      if (!whole.ok()) return whole;
      absl::StatusOr<PageIndex> first = DecodePage(fetch.ram_offset_bytes());
      if (!first.ok()) return first.status();
      return FetchRange{{*first, PageCount(fetch.page_count())}};
    }
    default:
      return absl::InvalidArgumentError(
          "a message of the bulk stream has no content that is due here");
  }
}

}  // namespace postcopy
