// What a source may say on the data plane, through the destination's decoder
// and into a DestinationVm.
//
// Input: one byte of Options, then an UrgentResponse or a BulkResponse as it
// travels. A checksum that fits is nothing a fuzzer finds, nor are thousands of
// bytes of page data; so the options mend what came before it is decoded.
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/check.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/run_compression.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "postcopy/v1/data_plane.pb.h"
#include "tests/fuzz/byte_reader.h"
#include "uffd/destination_vm.h"
#include "uffd/kernel_guest.h"
#include "uffd/response_decoder.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using Runs = google::protobuf::RepeatedPtrField<v1::PageRun>;

enum Options : uint8_t {
  kUrgent = 1 << 0,          // an UrgentResponse; else a BulkResponse
  kMendChecksums = 1 << 1,   // of all runs, and of a stale piece
  kMendEveryOther = 1 << 2,  // with kMendChecksums: from the first run on
  kMendData = 1 << 3,        // to the length that page_count says
  kMendPlaces = 1 << 4,      // to pages in the layout or close behind it
  kCompress = 1 << 5,        // mended data, as the encoding of its run says
};

constexpr uint64_t kPages[] = {24, 1, 39};
constexpr uint64_t kAllPages = 64;
constexpr uint64_t kRunPagesMax = kMaxRamBytes.value() / kPageSize;
// The pages of data that kMendData makes for one run.
constexpr uint64_t kMendedPagesMax = 8;
// What the compressed runs of one message may hold together.
constexpr uint64_t kMostCompressedPages = 64;
constexpr HostAddress kAddress{0x100000000};

// One VM for all inputs. It stays in precopy, where content is replaced, so
// that no input depends on those before it.
class Destination {
 public:
  Destination() {
    const ByteCount all = BytesIn(PageCount(kAllPages));
    uffd_.Map(kAddress, all, fd_.get(), 0);
    std::vector<PageCount> sizes;
    std::vector<DestinationRegion> regions;
    ByteCount offset;
    for (const uint64_t pages : kPages) {
      sizes.emplace_back(pages);
      regions.push_back({kAddress + offset, fd_.get(), offset.value()});
      offset += BytesIn(PageCount(pages));
    }
    vm_ = *DestinationVm::Create(LayoutOf(sizes), regions, Share(&uffd_),
                                 &clock_);
  }

  absl::Status Store(absl::Span<const ReceivedRun> runs) {
    return vm_->StorePrecopied(runs);
  }
  std::vector<uint8_t> Content(PageRun run) const {
    std::vector<uint8_t> bytes(BytesIn(run.count).value());
    POSTCOPY_CHECK(::pread(fd_.get(), bytes.data(), bytes.size(),
                           static_cast<off_t>(OffsetOf(run.first).value())) ==
                   static_cast<ssize_t>(bytes.size()));
    return bytes;
  }

 private:
  const UniqueFd fd_ = *CreateMemfd("ram", BytesIn(PageCount(kAllPages)), 0);
  SimulatedClock clock_;
  SimulatedUffd uffd_;
  std::unique_ptr<DestinationVm> vm_;
};

// The checksum as the protocol's text has it.
uint32_t Checksum(uint64_t at, uint64_t count, const std::string& data) {
  std::string bytes;
  for (const uint64_t number : {at, count}) {
    for (int shift = 0; shift < 64; shift += 8) {
      bytes.push_back(static_cast<char>(number >> shift));
    }
  }
  bytes += data;
  return Crc32c({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

// The content of a run, by another way through zstd than the decoder's: piece
// by piece, from a stream. Empty if it is no content of a run.
std::optional<std::string> ContentOf(const v1::PageRun& run) {
  const std::string& data = run.data();
  if (run.encoding() == v1::PAGE_ENCODING_UNSPECIFIED) return data;
  if (run.encoding() != v1::PAGE_ENCODING_ZSTD || run.page_count() == 0 ||
      run.page_count() > kMostCompressedPages ||
      !data.starts_with("\x28\xb5\x2f\xfd") ||
      ZSTD_getFrameContentSize(data.data(), data.size()) !=
          run.page_count() * kPageSize) {
    return std::nullopt;
  }
  static ZSTD_DCtx* const context = ZSTD_createDCtx();
  ZSTD_DCtx_reset(context, ZSTD_reset_session_and_parameters);
  ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax,
                         ZSTD_dParam_getBounds(ZSTD_d_windowLogMax).upperBound);
  std::string content(run.page_count() * kPageSize, '\0');
  ZSTD_inBuffer in{data.data(), data.size(), 0};
  ZSTD_outBuffer out{content.data(), 0, 0};
  while (true) {
    out.size = std::min(out.size + 1000, content.size());
    const size_t before = out.pos + in.pos;
    const size_t left = ZSTD_decompressStream(context, &out, &in);
    if (ZSTD_isError(left) != 0) return std::nullopt;
    if (left == 0) break;
    if (out.pos == content.size() && out.pos + in.pos == before) {
      return std::nullopt;
    }
    if (in.pos == in.size && out.pos < out.size) return std::nullopt;
  }
  if (in.pos != in.size || out.pos != content.size()) return std::nullopt;
  return content;
}

uint32_t Checksum(const v1::PageRun& run) {
  return Checksum(run.ram_offset_bytes(), run.page_count(),
                  ContentOf(run).value_or(""));
}

void Compress(v1::PageRun& run) {
  std::string frame(ZSTD_compressBound(run.data().size()), '\0');
  frame.resize(ZSTD_compress(frame.data(), frame.size(), run.data().data(),
                             run.data().size(), 1));
  run.set_data(std::move(frame));
}

void Mend(uint8_t options, Runs& runs) {
  for (int i = 0; i < runs.size(); ++i) {
    v1::PageRun& run = runs[i];
    if ((options & kMendPlaces) != 0) {
      run.set_ram_offset_bytes(run.ram_offset_bytes() % (kAllPages + 2) *
                               kPageSize);
      run.set_page_count(run.page_count() % (kAllPages + 2));
    }
    if ((options & kMendData) != 0 && !run.data().empty()) {
      const uint64_t pages = std::min(run.page_count(), kMendedPagesMax);
      run.mutable_data()->resize(pages * kPageSize, run.data().back());
    }
    if ((options & kCompress) != 0 &&
        run.encoding() == v1::PAGE_ENCODING_ZSTD) {
      Compress(run);
    }
    if ((options & kMendChecksums) != 0 &&
        ((options & kMendEveryOther) == 0 || i % 2 == 0)) {
      run.set_crc32c(Checksum(run));
    }
  }
}

bool IsRun(const v1::PageRun& run) {
  return run.ram_offset_bytes() % kPageSize == 0 && run.page_count() > 0 &&
         run.page_count() <= kRunPagesMax;
}

// The runs that can be decoded and whose checksum fits; with `urgent`, none
// that is compressed.
// Nothing of it, but for messages in it, is a field that nobody knows.
bool IsKnown(const google::protobuf::Message& message) {
  return message.GetReflection()->GetUnknownFields(message).empty();
}

// Of a BulkResponse, but for what counts as damaged runs.
bool IsKnownBulk(const v1::BulkResponse& response) {
  return IsKnown(response) && IsKnown(response.round_end()) &&
         IsKnown(response.stale()) && IsKnown(response.early_discard()) &&
         IsKnown(response.device_state()) && IsKnown(response.switch_over()) &&
         IsKnown(response.commit()) && IsKnown(response.recently_dirtied());
}

std::vector<const v1::PageRun*> Fitting(const Runs& runs, bool urgent) {
  std::vector<const v1::PageRun*> fitting;
  uint64_t compressed_pages = 0;
  for (const v1::PageRun& run : runs) {
    if (run.encoding() != v1::PAGE_ENCODING_UNSPECIFIED) {
      if (urgent || run.page_count() > kMostCompressedPages ||
          compressed_pages + run.page_count() > kMostCompressedPages ||
          !ContentOf(run).has_value()) {
        continue;
      }
      compressed_pages += run.page_count();
    }
    if (run.crc32c() == Checksum(run) && IsKnown(run)) fitting.push_back(&run);
  }
  return fitting;
}

bool AllAreRuns(const std::vector<const v1::PageRun*>& runs) {
  return std::all_of(runs.begin(), runs.end(),
                     [](const v1::PageRun* run) { return IsRun(*run); });
}

void CheckDecoded(const std::vector<const v1::PageRun*>& wanted,
                  absl::Span<const ReceivedRun> got) {
  POSTCOPY_CHECK(got.size() == wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const v1::PageRun& run = *wanted[i];
    POSTCOPY_CHECK(OffsetOf(got[i].pages.first).value() ==
                   run.ram_offset_bytes());
    POSTCOPY_CHECK(got[i].pages.count.value() == run.page_count());
    const std::string data = *ContentOf(run);
    POSTCOPY_CHECK(got[i].data.size() == data.size());
    POSTCOPY_CHECK(std::equal(
        got[i].data.begin(), got[i].data.end(), data.begin(),
        [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); }));
  }
}

// What a destination must say to `run`.
absl::StatusCode Verdict(const ReceivedRun& run) {
  const uint64_t first = run.pages.first.value();
  const uint64_t count = run.pages.count.value();
  if (first >= kAllPages || count > kAllPages - first) {
    return absl::StatusCode::kOutOfRange;
  }
  if (!run.data.empty() && run.data.size() != count * kPageSize) {
    return absl::StatusCode::kInvalidArgument;
  }
  return absl::StatusCode::kOk;
}

// Stores `runs` and looks at the last, over which nothing else came.
void CheckStored(absl::Span<const ReceivedRun> runs) {
  static Destination& destination = *new Destination;
  absl::StatusCode wanted = absl::StatusCode::kOk;
  for (const ReceivedRun& run : runs) {
    wanted = Verdict(run);
    if (wanted != absl::StatusCode::kOk) break;
  }
  const absl::Status status = destination.Store(runs);
  POSTCOPY_CHECK(status.code() == wanted);
  if (!status.ok() || runs.empty()) return;
  const ReceivedRun& last = runs.back();
  std::vector<uint8_t> content(last.data.begin(), last.data.end());
  content.resize(BytesIn(last.pages.count).value());
  POSTCOPY_CHECK(destination.Content(last.pages) == content);
}

void FuzzUrgent(uint8_t options, v1::UrgentResponse response) {
  Mend(options, *response.mutable_runs());
  const std::vector<const v1::PageRun*> fitting =
      Fitting(response.runs(), /*urgent=*/true);
  std::vector<ReceivedRun> runs;
  const auto got = DecodeUrgent(response, runs);
  if (!IsKnown(response)) {
    POSTCOPY_CHECK(absl::IsDataLoss(got.status()));
    return;
  }
  if (!AllAreRuns(fitting)) {
    POSTCOPY_CHECK(absl::IsInvalidArgument(got.status()));
    return;
  }
  if (static_cast<size_t>(response.runs_size()) != fitting.size()) {
    POSTCOPY_CHECK(absl::IsDataLoss(got.status()));
    return;
  }
  POSTCOPY_CHECK(got.ok());
  CheckDecoded(fitting, *got);
  CheckStored(*got);
}

void CheckPages(const v1::PageBatch& batch,
                const absl::StatusOr<BulkEvent>& event) {
  const Runs& sent = batch.runs();
  const std::vector<const v1::PageRun*> fitting =
      Fitting(sent, /*urgent=*/false);
  if (!AllAreRuns(fitting)) {
    POSTCOPY_CHECK(absl::IsInvalidArgument(event.status()));
    return;
  }
  POSTCOPY_CHECK(event.ok());
  const auto* pages = std::get_if<PagesArrived>(&*event);
  POSTCOPY_CHECK(pages != nullptr);
  POSTCOPY_CHECK(pages->damaged_runs + fitting.size() ==
                 static_cast<size_t>(sent.size()) + (IsKnown(batch) ? 0 : 1));
  CheckDecoded(fitting, pages->runs);
  CheckStored(pages->runs);
}

void CheckStale(const v1::StaleBitmap& sent,
                const absl::StatusOr<BulkEvent>& event) {
  const uint64_t at = sent.ram_offset_bytes();
  if (sent.crc32c() != Checksum(at, sent.bits().size(), sent.bits())) {
    POSTCOPY_CHECK(absl::IsDataLoss(event.status()));
    return;
  }
  const bool aligned =
      at % (64 * kPageSize) == 0 && sent.bits().size() % 8 == 0;
  if (!aligned) {
    POSTCOPY_CHECK(absl::IsInvalidArgument(event.status()));
    return;
  }
  POSTCOPY_CHECK(event.ok());
  const auto* piece = std::get_if<StalePiece>(&*event);
  POSTCOPY_CHECK(piece != nullptr);
  POSTCOPY_CHECK(OffsetOf(piece->first).value() == at);
  POSTCOPY_CHECK(piece->bits.size() == sent.bits().size());
}

// Runs that are ones, as many counts as offsets, and none too many of them.
bool AreDirtied(const v1::RecentlyDirtied& sent) {
  const int count = sent.ram_offsets_bytes_size();
  if (count == 0 || count > 4096 || count != sent.page_counts_size()) {
    return false;
  }
  for (int i = 0; i < count; ++i) {
    if (sent.ram_offsets_bytes(i) % kPageSize != 0 ||
        sent.page_counts(i) - 1 >= kRunPagesMax) {
      return false;
    }
  }
  return true;
}

void CheckDirtied(const v1::RecentlyDirtied& sent,
                  const absl::StatusOr<BulkEvent>& event) {
  POSTCOPY_CHECK(event.ok() == AreDirtied(sent));
  if (!event.ok()) return;
  const auto* dirtied = std::get_if<PagesDirtied>(&*event);
  POSTCOPY_CHECK(dirtied != nullptr);
  for (int i = 0; i < sent.page_counts_size(); ++i) {
    const PageRun run = dirtied->runs[static_cast<size_t>(i)];
    POSTCOPY_CHECK(OffsetOf(run.first).value() == sent.ram_offsets_bytes(i));
    POSTCOPY_CHECK(run.count.value() == sent.page_counts(i));
  }
}

void FuzzBulk(uint8_t options, v1::BulkResponse response) {
  if (response.has_pages()) {
    Mend(options, *response.mutable_pages()->mutable_runs());
  }
  if (response.has_stale() && (options & kMendChecksums) != 0) {
    v1::StaleBitmap& stale = *response.mutable_stale();
    stale.set_crc32c(
        Checksum(stale.ram_offset_bytes(), stale.bits().size(), stale.bits()));
  }
  std::vector<ReceivedRun> runs;
  RunDecompressor decompressor;
  const absl::StatusOr<BulkEvent> event =
      DecodeBulk(response, runs, decompressor);
  if (!IsKnownBulk(response)) {
    POSTCOPY_CHECK(absl::IsDataLoss(event.status()));
  } else if (response.has_pages()) {
    CheckPages(response.pages(), event);
  } else if (response.has_stale()) {
    CheckStale(response.stale(), event);
  } else if (response.has_recently_dirtied()) {
    CheckDirtied(response.recently_dirtied(), event);
  } else {
    const bool empty =
        response.message_case() == v1::BulkResponse::MESSAGE_NOT_SET;
    POSTCOPY_CHECK(event.ok() != empty);
  }
}

template <typename Message>
bool Parse(absl::Span<const uint8_t> bytes, Message* message) {
  return message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

void Fuzz(ByteReader input) {
  const uint8_t options = input.Byte();
  if ((options & kUrgent) != 0) {
    v1::UrgentResponse response;
    if (Parse(input.rest(), &response)) FuzzUrgent(options, response);
  } else {
    v1::BulkResponse response;
    if (Parse(input.rest(), &response)) FuzzBulk(options, response);
  }
}

}  // namespace
}  // namespace postcopy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  postcopy::Fuzz(postcopy::ByteReader({data, size}));
  return 0;
}
