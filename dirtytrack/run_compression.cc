#include "dirtytrack/run_compression.h"

#include <zstd.h>

#include <cstring>

namespace postcopy {
namespace {

// The first four bytes of a frame. zstd would also take the formats of its
// first versions, and skip frames that hold nothing.
constexpr uint8_t kMagic[] = {0x28, 0xb5, 0x2f, 0xfd};

constexpr uint64_t kRunPagesMax = kCompressedRunBytesMax.value() / kPageSize;

absl::Status NoMemory() {
  return absl::ResourceExhaustedError(
      "no memory for a zstd context: give the daemon more or migrate without "
      "compression");
}

absl::Status Damaged(const char* how) { return absl::DataLossError(how); }

// True if `frame` is one frame, and nothing else, that says that it holds
// `size` bytes.
bool IsOneFrameOf(absl::Span<const uint8_t> frame, size_t size) {
  if (frame.size() < sizeof(kMagic) ||
      std::memcmp(frame.data(), kMagic, sizeof(kMagic)) != 0) {
    return false;
  }
  // Both return values larger than any size for what they do not understand.
  return ZSTD_getFrameContentSize(frame.data(), frame.size()) == size &&
         ZSTD_findFrameCompressedSize(frame.data(), frame.size()) ==
             frame.size();
}

}  // namespace

void RunCompressor::Free::operator()(ZSTD_CCtx_s* context) const {
  ZSTD_freeCCtx(context);
}

void RunDecompressor::Free::operator()(ZSTD_DCtx_s* context) const {
  ZSTD_freeDCtx(context);
}

absl::StatusOr<std::unique_ptr<RunCompressor>> RunCompressor::Create() {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  if (context == nullptr) return NoMemory();
  return std::unique_ptr<RunCompressor>(new RunCompressor(context));
}

RunCompressor::RunCompressor(ZSTD_CCtx_s* context) : context_(context) {}

bool RunCompressor::Compress(std::string& data) {
  if (data.empty() || data.size() > kCompressedRunBytesMax.value()) {
    return false;
  }
  frame_.resize(kCompressedRunBytesMax.value());
  // zstd gives up once the frame would not fit into this.
  const size_t worthwhile = data.size() - data.size() / kWorthwhileSavingPart;
  const size_t size =
      ZSTD_compressCCtx(context_.get(), frame_.data(), worthwhile, data.data(),
                        data.size(), kRunCompressionLevel);
  if (ZSTD_isError(size) != 0) return false;
  data.assign(frame_.data(), size);
  return true;
}

absl::StatusOr<absl::Span<const uint8_t>> RunDecompressor::Decompress(
    absl::Span<const uint8_t> frame, uint64_t pages) {
  if (pages == 0 || pages > kRunPagesMax) {
    return Damaged("a compressed run has no page or too many");
  }
  const size_t size = pages * kPageSize;
  if (size > kCompressedRunBytesMax.value() - used_) {
    return Damaged("the compressed runs of a message hold too many pages");
  }
  if (!IsOneFrameOf(frame, size)) {
    return Damaged("a compressed run is not one frame of its pages");
  }
  if (context_ == nullptr) {
    context_.reset(ZSTD_createDCtx());
    if (context_ == nullptr) return NoMemory();
    bytes_.resize(kCompressedRunBytesMax.value());
  }
  uint8_t* const bytes = bytes_.data() + used_;
  // Also if it fails: a message full of bad frames must not cost more.
  used_ += size;
  // In one go, from buffer to buffer: zstd then keeps no window of its own,
  // whatever size the frame asks for.
  if (ZSTD_decompressDCtx(context_.get(), bytes, size, frame.data(),
                          frame.size()) != size) {
    return Damaged("a compressed run does not decompress to its pages");
  }
  return absl::MakeConstSpan(bytes, size);
}

}  // namespace postcopy
