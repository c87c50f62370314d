// The content of page runs, made smaller for the bulk lane, and back: one zstd
// frame for each run. No protobuf, no gRPC.
#ifndef DIRTYTRACK_RUN_COMPRESSION_H_
#define DIRTYTRACK_RUN_COMPRESSION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace postcopy {

// The longest run that is compressed, and all that one message may decompress
// to: what a batch holds.
inline constexpr ByteCount kCompressedRunBytesMax{64 * kPageSize};

// zstd's fastest level without loss of the entropy stage: the bulk lane has
// less CPU to give than a higher level wants.
inline constexpr int kRunCompressionLevel = 1;

// A run must become smaller by one part in so many, or it travels as it is:
// below that the destination's work is not worth the bytes.
inline constexpr size_t kWorthwhileSavingPart = 8;

// Compresses run after run with one context. What it allocates, it allocates at
// the first run. Not thread-safe.
class RunCompressor {
 public:
  // RESOURCE_EXHAUSTED without memory.
  static absl::StatusOr<std::unique_ptr<RunCompressor>> Create();

  // Replaces `data`, keeping its memory, by a frame of it and returns true;
  // returns false and leaves it as it is if it would not become smaller by the
  // worthwhile part, is empty, or is longer than kCompressedRunBytesMax.
  bool Compress(std::string& data);

 private:
  struct Free {
    void operator()(ZSTD_CCtx_s* context) const;
  };

  explicit RunCompressor(ZSTD_CCtx_s* context);

  const std::unique_ptr<ZSTD_CCtx_s, Free> context_;
  std::vector<char> frame_;
};

// Decompresses what a peer sent, which may be anything. Its memory does not
// depend on it: one context and one buffer of kCompressedRunBytesMax, both
// allocated at the first run. Not thread-safe.
class RunDecompressor {
 public:
  // Forgets what was decompressed so far: its bytes will be overwritten.
  void Clear() { used_ = 0; }

  // The content of a run of `pages` pages, valid until Clear. DATA_LOSS unless
  // `frame` is one whole zstd frame, and nothing else, that says that it holds
  // exactly as much, does, and needs no dictionary; or if this and what
  // came since the last Clear are more than kCompressedRunBytesMax.
  // RESOURCE_EXHAUSTED without memory.
  absl::StatusOr<absl::Span<const uint8_t>> Decompress(
      absl::Span<const uint8_t> frame, uint64_t pages);

 private:
  struct Free {
    void operator()(ZSTD_DCtx_s* context) const;
  };

  std::unique_ptr<ZSTD_DCtx_s, Free> context_;
  std::vector<uint8_t> bytes_;
  size_t used_ = 0;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_RUN_COMPRESSION_H_
