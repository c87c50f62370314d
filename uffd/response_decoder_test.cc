#include "uffd/response_decoder.h"

#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/run_compression.h"
#include "dirtytrack/types.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr uint64_t kRunPagesMax = kMaxRamBytes.value() / kPageSize;

absl::Span<const uint8_t> AsBytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

v1::PageRun RunOf(uint64_t offset, uint64_t pages, const std::string& data) {
  v1::PageRun run;
  run.set_ram_offset_bytes(offset);
  run.set_page_count(pages);
  run.set_data(data);
  run.set_crc32c(PlacedCrc32c(RamOffset(offset), pages, AsBytes(data)));
  return run;
}

v1::PageRun Damaged(v1::PageRun run) {
  run.set_crc32c(run.crc32c() ^ 1);
  return run;
}

v1::PageRun Compressed(v1::PageRun run) {
  POSTCOPY_CHECK((*RunCompressor::Create())->Compress(*run.mutable_data()));
  run.set_encoding(v1::PAGE_ENCODING_ZSTD);
  return run;
}

class ResponseDecoderTest : public testing::Test {
 protected:
  absl::StatusOr<absl::Span<const ReceivedRun>> Urgent(
      const std::vector<v1::PageRun>& runs) {
    urgent_.mutable_runs()->Assign(runs.begin(), runs.end());
    return DecodeUrgent(urgent_, runs_);
  }
  absl::StatusOr<BulkEvent> Bulk(const std::vector<v1::PageRun>& runs) {
    bulk_.mutable_pages()->mutable_runs()->Assign(runs.begin(), runs.end());
    return DecodeBulk(bulk_, runs_, decompressor_);
  }
  absl::StatusOr<BulkEvent> Stale(uint64_t offset, const std::string& bits,
                                  uint32_t damage = 0) {
    v1::StaleBitmap& stale = *bulk_.mutable_stale();
    stale.set_ram_offset_bytes(offset);
    stale.set_bits(bits);
    stale.set_crc32c(
        PlacedCrc32c(RamOffset(offset), bits.size(), AsBytes(bits)) ^ damage);
    return DecodeBulk(bulk_, runs_, decompressor_);
  }

  v1::UrgentResponse urgent_;
  v1::BulkResponse bulk_;
  std::vector<ReceivedRun> runs_;
  RunDecompressor decompressor_;
};

TEST_F(ResponseDecoderTest, RunsPointIntoTheMessage) {
  const auto runs = Urgent(
      {RunOf(kPageSize, 1, std::string(kPageSize, 'a')), RunOf(0, 7, "")});
  ASSERT_TRUE(runs.ok()) << runs.status();
  ASSERT_EQ(runs->size(), 2u);
  EXPECT_EQ((*runs)[0].pages, (PageRun{PageIndex(1), PageCount(1)}));
  EXPECT_EQ((*runs)[0].data.data(), AsBytes(urgent_.runs(0).data()).data());
  EXPECT_EQ((*runs)[0].data.size(), kPageSize);
  EXPECT_EQ((*runs)[1].pages, (PageRun{PageIndex(0), PageCount(7)}));
  EXPECT_TRUE((*runs)[1].data.empty());
}

TEST_F(ResponseDecoderTest, NoRunsAreNoError) {
  ASSERT_TRUE(Urgent({RunOf(0, 1, "")}).ok());
  const auto runs = Urgent({});
  ASSERT_TRUE(runs.ok());
  EXPECT_TRUE(runs->empty());
}

TEST_F(ResponseDecoderTest, TakesTheLongestRunAndNotOneLonger) {
  EXPECT_TRUE(Urgent({RunOf(0, kRunPagesMax, "")}).ok());
  for (const uint64_t pages : {uint64_t{0}, kRunPagesMax + 1, UINT64_MAX}) {
    const absl::Status status = Urgent({RunOf(0, pages, "")}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << pages << ": " << status;
  }
}

TEST_F(ResponseDecoderTest, TakesTheLastOffsetThatIsAligned) {
  const uint64_t last = UINT64_MAX - (kPageSize - 1);
  const auto runs = Urgent({RunOf(last, kRunPagesMax, "")});
  ASSERT_TRUE(runs.ok()) << runs.status();
  EXPECT_EQ(OffsetOf(runs->front().pages.first), RamOffset(last));
  EXPECT_TRUE(
      absl::IsInvalidArgument(Urgent({RunOf(last + 1, 1, "")}).status()));
}

TEST_F(ResponseDecoderTest, OneDamagedRunIsTheLossOfAnUrgentAnswer) {
  const absl::Status status =
      Urgent({RunOf(0, 1, ""), Damaged(RunOf(kPageSize, 1, ""))}).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
}

TEST_F(ResponseDecoderTest, DamagedRunsOfABatchAreLeftOutAndCounted) {
  // What is damaged may say anything: nothing else of it is looked at.
  const auto event = Bulk({Damaged(RunOf(0, 1, "")), RunOf(kPageSize, 2, ""),
                           Damaged(RunOf(1, 0, "x"))});
  ASSERT_TRUE(event.ok()) << event.status();
  const auto& pages = std::get<PagesArrived>(*event);
  EXPECT_EQ(pages.damaged_runs, 2u);
  ASSERT_EQ(pages.runs.size(), 1u);
  EXPECT_EQ(pages.runs[0].pages, (PageRun{PageIndex(1), PageCount(2)}));
}

TEST_F(ResponseDecoderTest, ABatchWithARunThatIsNoneIsRefused) {
  const absl::Status status = Bulk({RunOf(0, 1, ""), RunOf(1, 1, "")}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

TEST_F(ResponseDecoderTest, CompressedRunsComeOutAsTheirPages) {
  const std::string a(3 * kPageSize, 'a');
  const std::string b(kPageSize, 'b');
  const auto event = Bulk(
      {Compressed(RunOf(0, 3, a)), RunOf(3 * kPageSize, 1, b),
       RunOf(4 * kPageSize, 2, ""), Compressed(RunOf(6 * kPageSize, 1, b))});
  ASSERT_TRUE(event.ok()) << event.status();
  const auto& pages = std::get<PagesArrived>(*event);
  EXPECT_EQ(pages.damaged_runs, 0u);
  ASSERT_EQ(pages.runs.size(), 4u);
  EXPECT_TRUE(pages.runs[0].data == AsBytes(a));
  EXPECT_TRUE(pages.runs[1].data == AsBytes(b));
  EXPECT_TRUE(pages.runs[2].data.empty());
  EXPECT_TRUE(pages.runs[3].data == AsBytes(b));
}

TEST_F(ResponseDecoderTest, WhatDoesNotDecompressIsDamaged) {
  const v1::PageRun good =
      Compressed(RunOf(0, 2, std::string(2 * kPageSize, 'a')));
  v1::PageRun unknown = good;
  unknown.set_encoding(static_cast<v1::PageEncoding>(2));
  v1::PageRun plain = good;
  plain.clear_encoding();
  v1::PageRun truncated = good;
  truncated.mutable_data()->pop_back();
  v1::PageRun longer = good;
  longer.mutable_data()->push_back('x');
  v1::PageRun other_count = good;
  other_count.set_page_count(1);
  v1::PageRun other_place = good;
  other_place.set_ram_offset_bytes(kPageSize);
  v1::PageRun empty = good;
  empty.clear_data();
  const auto event = Bulk({unknown, plain, truncated, longer, other_count,
                           other_place, empty, Damaged(good), good});
  ASSERT_TRUE(event.ok()) << event.status();
  const auto& pages = std::get<PagesArrived>(*event);
  EXPECT_EQ(pages.damaged_runs, 8u);
  // All but the one that says that it is plain.
  EXPECT_EQ(pages.damaged_compressed_runs, 7u);
  EXPECT_TRUE(pages.decompressed);
  EXPECT_EQ(pages.runs.size(), 1u);
}

TEST_F(ResponseDecoderTest, CompressedPagesOfABatchAreBounded) {
  std::vector<v1::PageRun> runs;
  for (uint64_t i = 0; i < 64; ++i) {
    runs.push_back(
        Compressed(RunOf(i * kPageSize, 1, std::string(kPageSize, 'a'))));
  }
  // The bound is that of one message: the second has as much room.
  for (const uint64_t damaged : {0, 0, 1}) {
    if (damaged != 0) runs.push_back(runs.front());
    const auto event = Bulk(runs);
    ASSERT_TRUE(event.ok()) << event.status();
    EXPECT_EQ(std::get<PagesArrived>(*event).damaged_runs, damaged);
    EXPECT_EQ(std::get<PagesArrived>(*event).runs.size(), 64u);
  }
}

TEST_F(ResponseDecoderTest, ACompressedUrgentAnswerIsALoss) {
  const absl::Status status =
      Urgent({Compressed(RunOf(0, 1, std::string(kPageSize, 'a')))}).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
}

TEST_F(ResponseDecoderTest, ACompressedRunIsAligned) {
  const absl::Status status =
      Bulk({Compressed(RunOf(1, 1, std::string(kPageSize, 'a')))}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

TEST_F(ResponseDecoderTest, StalePiecesAreAligned) {
  const std::string bits(16, '\x81');
  const auto event = Stale(64 * kPageSize, bits);
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(std::get<StalePiece>(*event).first, PageIndex(64));
  EXPECT_EQ(std::get<StalePiece>(*event).bits.size(), bits.size());
  EXPECT_TRUE(absl::IsInvalidArgument(Stale(kPageSize, bits).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Stale(0, bits + "x").status()));
  EXPECT_TRUE(absl::IsDataLoss(Stale(0, bits, /*damage=*/1).status()));
}

TEST_F(ResponseDecoderTest, DirtiedRunsKeepTheirOrder) {
  v1::RecentlyDirtied& dirtied = *bulk_.mutable_recently_dirtied();
  for (const uint64_t page : {7, 3}) {
    dirtied.add_ram_offsets_bytes(page * kPageSize);
    dirtied.add_page_counts(page);
  }
  const auto event = DecodeBulk(bulk_, runs_, decompressor_);
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(std::get<PagesDirtied>(*event).runs,
            (std::vector<PageRun>{{PageIndex(7), PageCount(7)},
                                  {PageIndex(3), PageCount(3)}}));
}

TEST_F(ResponseDecoderTest, TakesSoManyDirtiedRunsAndNotOneMore) {
  v1::RecentlyDirtied& dirtied = *bulk_.mutable_recently_dirtied();
  EXPECT_TRUE(absl::IsInvalidArgument(
      DecodeBulk(bulk_, runs_, decompressor_).status()));
  for (size_t i = 0; i < kReceivedDirtiedRunsMax; ++i) {
    dirtied.add_ram_offsets_bytes(i * kPageSize);
    dirtied.add_page_counts(1);
  }
  EXPECT_TRUE(DecodeBulk(bulk_, runs_, decompressor_).ok());
  dirtied.add_ram_offsets_bytes(0);
  EXPECT_TRUE(absl::IsInvalidArgument(
      DecodeBulk(bulk_, runs_, decompressor_).status()));
  dirtied.add_page_counts(1);
  EXPECT_TRUE(absl::IsInvalidArgument(
      DecodeBulk(bulk_, runs_, decompressor_).status()));
}

TEST_F(ResponseDecoderTest, ADirtiedRunThatIsNoneIsRefused) {
  v1::RecentlyDirtied& dirtied = *bulk_.mutable_recently_dirtied();
  const auto decode = [&](uint64_t offset, uint64_t pages) {
    dirtied.Clear();
    dirtied.add_ram_offsets_bytes(offset);
    dirtied.add_page_counts(pages);
    return DecodeBulk(bulk_, runs_, decompressor_).status();
  };
  EXPECT_TRUE(decode(kPageSize, kRunPagesMax).ok());
  EXPECT_TRUE(decode(UINT64_MAX - (kPageSize - 1), 1).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(decode(kPageSize, kRunPagesMax + 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(decode(kPageSize, UINT64_MAX)));
  EXPECT_TRUE(absl::IsInvalidArgument(decode(kPageSize, 0)));
  EXPECT_TRUE(absl::IsInvalidArgument(decode(kPageSize - 1, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(decode(UINT64_MAX, 1)));
}

TEST_F(ResponseDecoderTest, ABulkMessageHasContent) {
  EXPECT_TRUE(absl::IsInvalidArgument(
      DecodeBulk(bulk_, runs_, decompressor_).status()));
}

// A tag that was damaged makes a field of it that nobody knows, and protobuf
// says nothing. Every bit of a message is damaged in turn: what is decoded then
// must not be taken for all that was sent.
template <typename Message, typename Check>
void DamageEachBit(const Message& message, Check check) {
  const std::string good = message.SerializeAsString();
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bytes = good;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    Message damaged;
    if (!damaged.ParseFromString(bytes)) continue;  // the stream ends
    SCOPED_TRACE(damaged.ShortDebugString());
    check(damaged);
  }
}

TEST_F(ResponseDecoderTest, NoDamageLeavesOutARunOfABatch) {
  v1::BulkResponse message;
  *message.mutable_pages()->add_runs() = RunOf(kPageSize, 3, "");
  *message.mutable_pages()->add_runs() =
      RunOf(8 * kPageSize, 1, std::string(64, 'a'));
  DamageEachBit(message, [this](const v1::BulkResponse& damaged) {
    const absl::StatusOr<BulkEvent> event =
        DecodeBulk(damaged, runs_, decompressor_);
    if (!event.ok()) return;
    const auto* const pages = std::get_if<PagesArrived>(&*event);
    ASSERT_NE(pages, nullptr);
    EXPECT_GT(pages->damaged_runs, 0u);
  });
}

TEST_F(ResponseDecoderTest, NoDamageLeavesOutAFaultedPage) {
  v1::UrgentResponse message;
  *message.add_runs() = RunOf(kPageSize, 3, "");
  *message.add_runs() = RunOf(8 * kPageSize, 1, std::string(64, 'a'));
  DamageEachBit(message, [this](const v1::UrgentResponse& damaged) {
    EXPECT_FALSE(DecodeUrgent(damaged, runs_).ok());
  });
}

TEST_F(ResponseDecoderTest, NoDamageMakesSomethingElseOfTheStaleSet) {
  v1::BulkResponse message;
  v1::StaleBitmap& stale = *message.mutable_stale();
  stale.set_ram_offset_bytes(64 * kPageSize);
  stale.set_bits(std::string(8, 'a'));
  stale.set_crc32c(
      PlacedCrc32c(RamOffset(64 * kPageSize), 8, AsBytes(stale.bits())));
  DamageEachBit(message, [this](const v1::BulkResponse& damaged) {
    const absl::StatusOr<BulkEvent> event =
        DecodeBulk(damaged, runs_, decompressor_);
    if (!event.ok()) return;
    // Of which the count will not fit: the piece is missing from the set.
    const auto* const pages = std::get_if<PagesArrived>(&*event);
    ASSERT_NE(pages, nullptr);
    EXPECT_TRUE(pages->runs.empty());
    EXPECT_GT(pages->damaged_runs, 0u);
  });
}

}  // namespace
}  // namespace postcopy
