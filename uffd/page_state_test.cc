#include "uffd/page_state.h"

#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <thread>
#include <vector>

#include "dirtytrack/page_bitmap.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr PageCount kPages{1000};

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

std::unique_ptr<PageState> NewState() {
  absl::StatusOr<std::unique_ptr<PageState>> state = PageState::Create(kPages);
  EXPECT_TRUE(state.ok()) << state.status();
  return *std::move(state);
}

TEST(PageStateTest, BeginsWithAllMissing) {
  const auto state = NewState();
  EXPECT_EQ(state->pages(), kPages);
  EXPECT_EQ(state->missing(), kPages);
  EXPECT_EQ(state->zero(), PageCount(0));
  EXPECT_EQ(state->NextMissingRun(PageIndex(0)), Pages(0, 1000));
}

TEST(PageStateTest, CountsEachPageOnce) {
  const auto state = NewState();
  EXPECT_EQ(state->MarkReceived(Pages(10, 100), false), PageCount(100));
  EXPECT_EQ(state->MarkReceived(Pages(50, 100), true), PageCount(40));
  EXPECT_EQ(state->missing(), PageCount(860));
  EXPECT_EQ(state->zero(), PageCount(100));
  EXPECT_TRUE(state->IsReceived(PageIndex(10)));
  EXPECT_FALSE(state->IsZero(PageIndex(49)));
  EXPECT_TRUE(state->IsZero(PageIndex(50)));
  EXPECT_EQ(state->MarkReceived(Pages(50, 1), false), PageCount(0));
  EXPECT_FALSE(state->IsZero(PageIndex(50)));
  EXPECT_EQ(state->zero(), PageCount(99));
}

TEST(PageStateTest, ContentIsWhatIsReceivedAndNotZeros) {
  const auto state = NewState();
  const auto next = [&](uint64_t from, uint64_t max) {
    return state->NextContentRun(PageIndex(from), PageCount(max));
  };
  EXPECT_EQ(next(0, 1000), std::nullopt);
  state->MarkReceived(Pages(10, 100), false);
  state->MarkReceived(Pages(10, 5), true);
  state->MarkReceived(Pages(40, 10), true);
  state->MarkReceived(Pages(300, 1), true);
  EXPECT_EQ(next(0, 1000), Pages(15, 25));
  EXPECT_EQ(next(0, 4), Pages(15, 4));
  EXPECT_EQ(next(40, 1000), Pages(50, 60));
  EXPECT_EQ(next(45, 2), Pages(50, 2));
  EXPECT_EQ(next(110, 1000), std::nullopt);
}

TEST(PageStateTest, MissingAgain) {
  const auto state = NewState();
  state->MarkReceived(Pages(0, 1000), true);
  EXPECT_EQ(state->missing(), PageCount(0));
  EXPECT_EQ(state->MarkMissing(Pages(999, 1)), PageCount(1));
  EXPECT_EQ(state->MarkMissing(Pages(999, 1)), PageCount(0));
  EXPECT_EQ(state->missing(), PageCount(1));
  EXPECT_EQ(state->zero(), PageCount(999));
  EXPECT_EQ(state->NextMissingRun(PageIndex(0)), Pages(999, 1));
}

TEST(PageStateTest, TakesTwoBitsPerPage) {
  const auto state = *PageState::Create(PageCount(1 << 20));
  const absl::StatusOr<ByteCount> size = FileSize(state->fd());
  EXPECT_EQ(*size, ByteCount(2 * (1 << 20) / 8 + kPageSize));
}

TEST(PageStateTest, LivesOnInItsMemfd) {
  UniqueFd kept;
  {
    const auto state = NewState();
    state->MarkReceived(Pages(3, 5), false);
    state->MarkReceived(Pages(8, 2), true);
    kept.Reset(::dup(state->fd()));
  }
  const auto state = PageState::Open(kept.get(), kPages);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ((*state)->missing(), PageCount(993));
  EXPECT_EQ((*state)->zero(), PageCount(2));
  EXPECT_TRUE((*state)->IsReceived(PageIndex(7)));
  EXPECT_TRUE((*state)->IsZero(PageIndex(9)));
}

TEST(PageStateTest, OpensOnlyItsOwnKind) {
  const auto code = [](int fd, PageCount pages) {
    return PageState::Open(fd, pages).status().code();
  };
  const auto state = NewState();
  EXPECT_EQ(code(state->fd(), PageCount(999)),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code(-1, kPages), absl::StatusCode::kInvalidArgument);

  const ByteCount size = *FileSize(state->fd());
  const UniqueFd unsealed = *CreateMemfd("unsealed", size, 0);
  EXPECT_EQ(code(unsealed.get(), kPages), absl::StatusCode::kInvalidArgument);
  const UniqueFd blank =
      *CreateMemfd("blank", size, F_SEAL_SHRINK | F_SEAL_GROW);
  EXPECT_EQ(code(blank.get(), kPages), absl::StatusCode::kInvalidArgument);

  PageStateHeader header = {};
  ASSERT_EQ(::pread(state->fd(), &header, sizeof(header), 0),
            static_cast<ssize_t>(sizeof(header)));
  header.version = kPageStateVersion + 1;
  ASSERT_EQ(::pwrite(state->fd(), &header, sizeof(header), 0),
            static_cast<ssize_t>(sizeof(header)));
  EXPECT_EQ(code(state->fd(), kPages), absl::StatusCode::kFailedPrecondition);

  // A header that promises more than there is.
  header.version = kPageStateVersion;
  const UniqueFd cut =
      *CreateMemfd("cut", ByteCount(kPageSize), F_SEAL_SHRINK | F_SEAL_GROW);
  ASSERT_EQ(::pwrite(cut.get(), &header, sizeof(header), 0),
            static_cast<ssize_t>(sizeof(header)));
  EXPECT_FALSE(PageState::Open(cut.get(), kPages).ok());
}

TEST(PageStateTest, RefusesSizesOutOfRange) {
  EXPECT_FALSE(PageState::Create(PageCount(0)).ok());
  EXPECT_FALSE(PageState::Create(PageCount(UINT64_MAX)).ok());
}

TEST(PageStateTest, ThreadsShareThePagesOut) {
  const auto state = NewState();
  std::atomic<uint64_t> received{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (uint64_t page = 0; page < 1000; ++page) {
        received += state->MarkReceived(Pages(page, 1), page % 2 == 0).value();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(received, 1000u);
  EXPECT_EQ(state->missing(), PageCount(0));
  EXPECT_EQ(state->zero(), PageCount(500));
}

TEST(PageStateTest, BytesComeBeforeTheMark) {
  const auto state = NewState();
  std::vector<int> bytes(1000, 0);
  std::thread writer([&] {
    for (uint64_t page = 0; page < 1000; ++page) {
      bytes[page] = 1;
      state->MarkReceived(Pages(page, 1), false);
    }
  });
  for (uint64_t page = 0; page < 1000; ++page) {
    while (!state->IsReceived(PageIndex(page))) std::this_thread::yield();
    EXPECT_EQ(bytes[page], 1);
  }
  writer.join();
}

// Against page by page, over word borders and past the end.
TEST(PageStateTest, NextReceivedRunAmongOthers) {
  constexpr uint64_t kPages = 300;
  const std::unique_ptr<PageState> state =
      *PageState::Create(PageCount(kPages));
  PageBitmap among = *PageBitmap::Create(PageCount(kPages));
  for (const PageRun run : {PageRun{PageIndex(3), PageCount(2)},
                            {PageIndex(60), PageCount(140)},
                            {PageIndex(256), PageCount(44)}}) {
    state->MarkReceived(run, /*is_zero=*/false);
  }
  for (const PageRun run : {PageRun{PageIndex(0), PageCount(4)},
                            {PageIndex(64), PageCount(128)},
                            {PageIndex(195), PageCount(105)}}) {
    among.view().SetRun(run);
  }
  const std::vector<PageRun> expected = {{PageIndex(3), PageCount(1)},
                                         {PageIndex(64), PageCount(128)},
                                         {PageIndex(195), PageCount(5)},
                                         {PageIndex(256), PageCount(44)}};
  std::vector<PageRun> runs;
  for (auto run = state->NextReceivedRun(among.view(), PageIndex(0));
       run.has_value();
       run = state->NextReceivedRun(among.view(), run->end())) {
    runs.push_back(*run);
  }
  EXPECT_EQ(runs, expected);
  EXPECT_EQ(state->NextReceivedRun(among.view(), PageIndex(100))->first,
            PageIndex(100));
  EXPECT_FALSE(
      state->NextReceivedRun(among.view(), PageIndex(kPages)).has_value());
}

}  // namespace
}  // namespace postcopy
