#include "pageserver/page_batch.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/run_compression.h"
#include "gtest/gtest.h"
#include "pageserver/test_guest.h"

namespace postcopy {
namespace {

PageRun PagesAt(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

bool IsZeroRun(const PageBatch::Run& run) { return run.data.empty(); }

// Each run has the bytes of its pages in `guest` and their checksum.
void ExpectContent(const PageBatch& batch, const TestGuest& guest) {
  for (const PageBatch::Run& run : batch.runs()) {
    EXPECT_TRUE(IsZeroRun(run) ||
                run.data.size() == BytesIn(run.pages.count).value());
    EXPECT_EQ(run.crc32c,
              RunChecksum(run.pages,
                          absl::MakeConstSpan(
                              reinterpret_cast<const uint8_t*>(run.data.data()),
                              run.data.size())));
    for (uint64_t i = 0; i < run.pages.count.value(); ++i) {
      const uint64_t page = run.pages.first.value() + i;
      EXPECT_TRUE(PageInRun(run.data, i) == guest.Page(page)) << page;
    }
  }
}

TEST(PageBatchTest, SplitsDataFromZeros) {
  TestGuest guest({8});
  guest.Write(0, 10);
  guest.Write(1, 11);
  guest.Write(3, 0);
  guest.Write(4, 14);
  const auto memory = guest.OpenMemory();
  PageBatch batch;
  EXPECT_TRUE(batch.empty());
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(0, 8)).ok());
  ASSERT_EQ(batch.runs().size(), 4u);
  EXPECT_EQ(batch.runs()[0].pages, PagesAt(0, 2));
  EXPECT_FALSE(IsZeroRun(batch.runs()[0]));
  EXPECT_EQ(batch.runs()[1].pages, PagesAt(2, 2));
  EXPECT_TRUE(IsZeroRun(batch.runs()[1]));
  EXPECT_EQ(batch.runs()[2].pages, PagesAt(4, 1));
  EXPECT_FALSE(IsZeroRun(batch.runs()[2]));
  EXPECT_EQ(batch.runs()[3].pages, PagesAt(5, 3));
  EXPECT_TRUE(IsZeroRun(batch.runs()[3]));
  EXPECT_EQ(batch.data_pages(), PageCount(3));
  EXPECT_EQ(batch.zero_pages(), PageCount(5));
  EXPECT_FALSE(batch.empty());
  ExpectContent(batch, guest);
}

TEST(PageBatchTest, AdjacentZerosAreOneRun) {
  TestGuest guest({16});
  const auto memory = guest.OpenMemory();
  PageBatch batch;
  batch.AddZero(PagesAt(0, 3));
  batch.AddZero(PagesAt(3, 1));
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(4, 2)).ok());
  ASSERT_EQ(batch.runs().size(), 1u);
  EXPECT_EQ(batch.runs()[0].pages, PagesAt(0, 6));
  ExpectContent(batch, guest);
  // A gap, or a step back, is not adjacent.
  batch.AddZero(PagesAt(7, 1));
  batch.AddZero(PagesAt(6, 1));
  EXPECT_EQ(batch.runs().size(), 3u);
  EXPECT_EQ(batch.zero_pages(), PageCount(8));
  ExpectContent(batch, guest);
}

// Data is not merged: each AddFrom of one page is a run of its own, which the
// urgent lane's answer relies on.
TEST(PageBatchTest, DataRunsAreNotMerged) {
  TestGuest guest({2});
  guest.Write(0, 1);
  guest.Write(1, 2);
  const auto memory = guest.OpenMemory();
  PageBatch batch;
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(0, 1)).ok());
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(1, 1)).ok());
  EXPECT_EQ(batch.runs().size(), 2u);
}

TEST(PageBatchTest, FullAtTheLimitOfDataPages) {
  const uint64_t max = kBatchPagesMax.value();
  TestGuest guest({max});
  for (uint64_t page = 0; page < max; ++page) guest.Write(page, 1 + page);
  const auto memory = guest.OpenMemory();
  PageBatch batch;
  EXPECT_EQ(batch.room(), kBatchPagesMax);
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(0, max - 1)).ok());
  EXPECT_FALSE(batch.full());
  EXPECT_EQ(batch.room(), PageCount(1));
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(max - 1, 1)).ok());
  EXPECT_TRUE(batch.full());
  EXPECT_EQ(batch.room(), PageCount(0));
  ExpectContent(batch, guest);
}

// Zero pages take no room, the runs they make do.
TEST(PageBatchTest, ZeroPagesTakeNoRoom) {
  PageBatch batch;
  batch.AddZero(PagesAt(0, 1'000'000));
  EXPECT_FALSE(batch.full());
  EXPECT_EQ(batch.room(), kBatchPagesMax);
}

TEST(PageBatchTest, FullAtTheLimitOfRuns) {
  PageBatch batch;
  for (uint64_t i = 0; i < kBatchRunsMax - 1; ++i) {
    batch.AddZero(PagesAt(2 * i, 1));
  }
  EXPECT_FALSE(batch.full());
  EXPECT_EQ(batch.room(), PageCount(1));
  batch.AddZero(PagesAt(2 * kBatchRunsMax, 1));
  EXPECT_TRUE(batch.full());
  EXPECT_EQ(batch.room(), PageCount(0));
  EXPECT_EQ(batch.runs().size(), kBatchRunsMax);
}

// The worst case that room() allows for: every page a run.
TEST(PageBatchTest, AlternatingPagesStayInsideTheLimits) {
  TestGuest guest({1024});
  for (uint64_t page = 0; page < 1024; page += 2) guest.Write(page, 1 + page);
  const auto memory = guest.OpenMemory();
  // From no run to all but one used before.
  for (size_t used = 0; used < kBatchRunsMax; used += 51) {
    PageBatch batch;
    for (size_t i = 0; i < used; ++i) batch.AddZero(PagesAt(5000 + 2 * i, 1));
    uint64_t at = 0;
    while (!batch.full() && at < 1024) {
      const uint64_t count = std::min(batch.room().value(), 1024 - at);
      ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(at, count)).ok());
      at += count;
    }
    EXPECT_TRUE(batch.full());
    EXPECT_LE(batch.runs().size(), kBatchRunsMax);
    EXPECT_LE(batch.data_pages(), kBatchPagesMax);
  }
}

TEST(PageBatchDeathTest, OnePastTheLimits) {
  TestGuest guest({kBatchPagesMax.value() + 1});
  guest.Write(0, 1);
  const auto memory = guest.OpenMemory();
  PageBatch batch;
  EXPECT_DEATH(
      (void)batch.AddFrom(*memory, PagesAt(0, kBatchPagesMax.value() + 1)),
      "check failed");
  EXPECT_DEATH((void)batch.AddFrom(*memory, PagesAt(0, 0)), "check failed");
  for (uint64_t i = 0; i < kBatchRunsMax; ++i) batch.AddZero(PagesAt(2 * i, 1));
  EXPECT_DEATH(batch.AddZero(PagesAt(2 * kBatchRunsMax, 1)), "check failed");
  EXPECT_DEATH((void)batch.AddFrom(*memory, PagesAt(0, 1)), "check failed");
}

// Whoever sent the batch may have taken its strings, or left others in them.
TEST(PageBatchTest, ClearKeepsNothing) {
  TestGuest guest({4});
  for (uint64_t page : {0, 1, 3}) guest.Write(page, 1 + page);
  const auto memory = guest.OpenMemory();
  PageBatch batch;
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(0, 4)).ok());
  for (PageBatch::Run& run : batch.runs()) run.data = "left over";
  batch.Clear();
  EXPECT_TRUE(batch.empty());
  EXPECT_EQ(batch.runs().size(), 0u);
  EXPECT_EQ(batch.data_pages(), PageCount(0));
  EXPECT_EQ(batch.zero_pages(), PageCount(0));
  EXPECT_EQ(batch.room(), kBatchPagesMax);
  batch.AddZero(PagesAt(2, 1));
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(3, 1)).ok());
  EXPECT_EQ(batch.runs().size(), 2u);
  ExpectContent(batch, guest);
}

TEST(PageBatchTest, FailedReadLeavesTheBatchAsItWas) {
  TestGuest guest({8});
  for (uint64_t page = 0; page < 8; ++page) guest.Write(page, 1 + page);
  const auto memory = guest.OpenMemory();
  PageBatch batch;
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(0, 2)).ok());
  guest.Truncate(ByteCount(5 * kPageSize));
  EXPECT_EQ(batch.AddFrom(*memory, PagesAt(3, 4)).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(batch.AddFrom(*memory, PagesAt(7, 2)).code(),
            absl::StatusCode::kOutOfRange);
  ASSERT_EQ(batch.runs().size(), 1u);
  EXPECT_EQ(batch.data_pages(), PageCount(2));
  EXPECT_EQ(batch.zero_pages(), PageCount(0));
  ExpectContent(batch, guest);
}

TEST(PageBatchTest, CompressesWhatBecomesSmaller) {
  TestGuest guest({8});
  for (uint64_t page : {0, 1, 4}) guest.Write(page, 10);
  const auto memory = guest.OpenMemory();
  const auto compressor = *RunCompressor::Create();
  PageBatch batch;
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(0, 8)).ok());
  EXPECT_EQ(batch.sent_bytes(), BytesIn(PageCount(3)));
  const uint32_t crc32c = batch.runs()[0].crc32c;
  batch.Compress(*compressor);
  uint64_t sent = 0;
  RunDecompressor decompressor;
  for (const PageBatch::Run& run : batch.runs()) {
    sent += run.data.size();
    EXPECT_EQ(run.compressed, !IsZeroRun(run));
    if (!run.compressed) continue;
    const auto content = decompressor.Decompress(
        {reinterpret_cast<const uint8_t*>(run.data.data()), run.data.size()},
        run.pages.count.value());
    ASSERT_TRUE(content.ok()) << content.status();
    EXPECT_EQ(run.crc32c, RunChecksum(run.pages, *content));
  }
  EXPECT_EQ(batch.runs()[0].crc32c, crc32c);
  EXPECT_EQ(batch.sent_bytes(), ByteCount(sent));
  EXPECT_LT(batch.sent_bytes(), BytesIn(PageCount(3)));
  EXPECT_EQ(batch.data_pages(), PageCount(3));
  // Whoever sends takes the strings.
  for (PageBatch::Run& run : batch.runs()) std::string().swap(run.data);
  EXPECT_EQ(batch.sent_bytes(), ByteCount(sent));
  // Nothing of it stays.
  batch.Clear();
  EXPECT_EQ(batch.sent_bytes(), ByteCount(0));
  ASSERT_TRUE(batch.AddFrom(*memory, PagesAt(0, 8)).ok());
  for (const PageBatch::Run& run : batch.runs()) {
    EXPECT_FALSE(run.compressed);
  }
  ExpectContent(batch, guest);
}

}  // namespace
}  // namespace postcopy
