#include "dirtytrack/run_compression.h"

#include <zstd.h>

#include <random>
#include <string>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr uint64_t kPagesMax = kCompressedRunBytesMax.value() / kPageSize;

absl::Span<const uint8_t> AsBytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string Noise(size_t size, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::string noise(size, '\0');
  for (char& c : noise) c = static_cast<char>(random());
  return noise;
}

// Compresses well, and is not the same everywhere.
std::string Text(uint64_t pages) {
  std::string text;
  for (uint64_t i = 0; text.size() < pages * kPageSize; ++i) {
    text += "line " + std::to_string(i * i) + "\n";
  }
  text.resize(pages * kPageSize);
  return text;
}

std::string FrameOf(const std::string& data, bool with_size = true) {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, with_size ? 1 : 0);
  std::string frame(ZSTD_compressBound(data.size()), '\0');
  frame.resize(ZSTD_compress2(context, frame.data(), frame.size(), data.data(),
                              data.size()));
  ZSTD_freeCCtx(context);
  return frame;
}

class RunCompressionTest : public testing::Test {
 protected:
  bool Compress(std::string& data) { return compressor_->Compress(data); }
  void ExpectDataLoss(const std::string& frame, uint64_t pages) {
    decompressor_.Clear();
    const absl::Status status =
        decompressor_.Decompress(AsBytes(frame), pages).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    // It harms nothing that comes behind it.
    ExpectContent(FrameOf(Text(1)), Text(1));
  }
  void ExpectContent(const std::string& frame, const std::string& wanted) {
    const auto got =
        decompressor_.Decompress(AsBytes(frame), wanted.size() / kPageSize);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(*got == AsBytes(wanted));
  }

  const std::unique_ptr<RunCompressor> compressor_ = *RunCompressor::Create();
  RunDecompressor decompressor_;
};

TEST_F(RunCompressionTest, ComesBackAsItWas) {
  for (const uint64_t pages : {uint64_t{1}, uint64_t{3}, kPagesMax}) {
    std::string data = Text(pages);
    ASSERT_TRUE(Compress(data)) << pages;
    EXPECT_LT(data.size(), pages * kPageSize);
    decompressor_.Clear();
    ExpectContent(data, Text(pages));
  }
}

TEST_F(RunCompressionTest, WhatDoesNotShrinkStaysAsItIs) {
  for (const uint64_t pages : {uint64_t{1}, kPagesMax}) {
    std::string data = Noise(pages * kPageSize);
    EXPECT_FALSE(Compress(data));
    EXPECT_TRUE(data == Noise(pages * kPageSize));
  }
  std::string nothing;
  EXPECT_FALSE(Compress(nothing));
}

TEST_F(RunCompressionTest, ShrinksByTheWorthwhilePartOrNotAtAll) {
  // Ever less noise: what is compressed at first is just small enough.
  bool shrunk = false;
  for (size_t noise = 4 * kPageSize; noise > 0; noise -= 64) {
    std::string data = Noise(noise);
    data.resize(4 * kPageSize);
    const bool is_smaller = Compress(data);
    if (is_smaller) {
      EXPECT_LE(data.size(), 4 * kPageSize * 7 / 8);
    } else {
      EXPECT_FALSE(shrunk) << noise;
      EXPECT_EQ(data.size(), 4 * kPageSize);
    }
    shrunk = shrunk || is_smaller;
  }
  EXPECT_TRUE(shrunk);
}

TEST_F(RunCompressionTest, TakesTheLongestRunAndNotOneLonger) {
  std::string longest(kCompressedRunBytesMax.value(), 'x');
  EXPECT_TRUE(Compress(longest));
  std::string longer(kCompressedRunBytesMax.value() + kPageSize, 'x');
  EXPECT_FALSE(Compress(longer));
  EXPECT_EQ(longer.size(), kCompressedRunBytesMax.value() + kPageSize);

  ExpectContent(longest, std::string(kCompressedRunBytesMax.value(), 'x'));
  ExpectDataLoss(FrameOf(longer), kPagesMax + 1);
  ExpectDataLoss(FrameOf(""), 0);
  ExpectDataLoss(longest, UINT64_MAX);
}

TEST_F(RunCompressionTest, AMessageHoldsAsManyPagesAsABatch) {
  const std::string half = Text(kPagesMax / 2);
  const std::string other(half.size(), 'o');
  ExpectContent(FrameOf(half), half);
  ExpectContent(FrameOf(other), other);
  EXPECT_TRUE(absl::IsDataLoss(
      decompressor_.Decompress(AsBytes(FrameOf(Text(1))), 1).status()));
  decompressor_.Clear();
  ExpectContent(FrameOf(Text(1)), Text(1));
}

TEST_F(RunCompressionTest, RunsOfAMessageDoNotOverwriteEachOther) {
  const std::string frame = FrameOf(Text(2));
  const auto first = decompressor_.Decompress(AsBytes(frame), 2);
  ASSERT_TRUE(first.ok());
  ExpectContent(FrameOf(std::string(kPageSize, 'x')),
                std::string(kPageSize, 'x'));
  EXPECT_TRUE(*first == AsBytes(Text(2)));
}

TEST_F(RunCompressionTest, AFrameOfMoreOrLessIsDamage) {
  const std::string frame = FrameOf(Text(2));
  ExpectDataLoss(frame, 1);
  ExpectDataLoss(frame, 3);
  ExpectDataLoss(FrameOf(Text(2) + "x"), 2);
  // One that does not say how much it holds.
  ExpectDataLoss(FrameOf(Text(2), /*with_size=*/false), 2);
}

TEST_F(RunCompressionTest, AFrameThatHoldsOtherThanItSaysIsDamage) {
  // In one segment, with two bytes of size, that are 256 less than it.
  std::string frame = FrameOf(Text(1));
  ASSERT_EQ(static_cast<uint8_t>(frame[4]) & 0xe0, 0x60);
  for (const int pages : {0, 2, 16}) {
    frame[5] = 0;
    frame[6] = static_cast<char>(pages * 16 - 1);
    ExpectDataLoss(frame, static_cast<uint64_t>(pages));
  }
}

TEST_F(RunCompressionTest, EveryTruncationIsDamage) {
  const std::string frame = FrameOf(Text(1));
  for (size_t size = 0; size < frame.size(); ++size) {
    ExpectDataLoss(frame.substr(0, size), 1);
  }
}

TEST_F(RunCompressionTest, WhatIsBehindOrBeforeTheFrameIsDamage) {
  const std::string frame = FrameOf(Text(1));
  ExpectDataLoss(frame + '\0', 1);
  ExpectDataLoss(frame + FrameOf(""), 1);
  ExpectDataLoss(frame + frame, 2);
  // A frame to be skipped.
  const std::string skipped("\x50\x2a\x4d\x18\x01\0\0\0x", 9);
  ExpectDataLoss(skipped + frame, 1);
  ExpectDataLoss(frame + skipped, 1);
  ExpectDataLoss(skipped, 1);
}

TEST_F(RunCompressionTest, ADictionaryIsDamage) {
  std::string frame = FrameOf(Text(1));
  // The flag that says that one byte of dictionary id follows, and that byte.
  frame[4] = static_cast<char>(frame[4] | 1);
  frame.insert(5, 1, '\x07');
  ExpectDataLoss(frame, 1);
}

TEST_F(RunCompressionTest, GarbageIsDamageOrPagesAndNeverMore) {
  const std::string good = FrameOf(Text(2));
  for (unsigned seed = 0; seed < 2000; ++seed) {
    std::mt19937 random(seed);
    std::string frame = good;
    for (int flips = 0; flips < 3; ++flips) {
      frame[random() % frame.size()] = static_cast<char>(random());
    }
    decompressor_.Clear();
    const auto got = decompressor_.Decompress(AsBytes(frame), 2);
    if (got.ok()) {
      EXPECT_EQ(got->size(), 2 * kPageSize);
    } else {
      EXPECT_TRUE(absl::IsDataLoss(got.status()));
    }
    ExpectDataLoss(Noise(seed + 1, seed), 2);
  }
}

}  // namespace
}  // namespace postcopy
