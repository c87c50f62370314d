#include "uffd/fetchable_pages.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/page_state.h"

namespace postcopy {
namespace {

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

class FetchablePagesTest : public testing::Test {
 protected:
  std::optional<PageRun> First(PageRun within, uint64_t max = 64) {
    return FetchablePages(state_.get(), requested_)
        .First(within, PageCount(max));
  }
  std::optional<PageRun> Last(PageRun within, uint64_t max = 64) {
    return FetchablePages(state_.get(), requested_)
        .Last(within, PageCount(max));
  }

  std::unique_ptr<PageState> state_ = *PageState::Create(PageCount(200));
  std::vector<PageRun> requested_;
};

TEST_F(FetchablePagesTest, FirstAndLastStayWithin) {
  EXPECT_EQ(First(Pages(10, 20)), Pages(10, 20));
  EXPECT_EQ(First(Pages(10, 100)), Pages(10, 64));
  EXPECT_EQ(First(Pages(10, 20), 1), Pages(10, 1));
  EXPECT_EQ(Last(Pages(10, 20)), Pages(10, 20));
  EXPECT_EQ(Last(Pages(10, 100)), Pages(46, 64));
  EXPECT_EQ(Last(Pages(10, 20), 1), Pages(29, 1));
}

TEST_F(FetchablePagesTest, NothingIsFoundOutsideTheVm) {
  EXPECT_EQ(First(Pages(190, 100)), Pages(190, 10));
  EXPECT_EQ(Last(Pages(190, 100)), Pages(190, 10));
  EXPECT_EQ(First(Pages(200, 10)), std::nullopt);
  EXPECT_EQ(Last(Pages(200, 10)), std::nullopt);
  EXPECT_EQ(First(Pages(5, 0)), std::nullopt);
  EXPECT_EQ(Last(Pages(5, 0)), std::nullopt);
  EXPECT_EQ(First(Pages(uint64_t{1} << 32, 1)), std::nullopt);
}

TEST_F(FetchablePagesTest, ReceivedAndRequestedPagesAreLeftOut) {
  state_->MarkReceived(Pages(0, 20), false);
  state_->MarkReceived(Pages(30, 10), true);
  requested_ = {Pages(20, 5), Pages(60, 30)};
  EXPECT_EQ(First(Pages(0, 100)), Pages(25, 5));
  EXPECT_EQ(First(Pages(30, 70)), Pages(40, 20));
  EXPECT_EQ(First(Pages(60, 30)), std::nullopt);
  EXPECT_EQ(Last(Pages(0, 90)), Pages(40, 20));
  EXPECT_EQ(Last(Pages(0, 90), 8), Pages(52, 8));
  EXPECT_EQ(Last(Pages(0, 40)), Pages(25, 5));
  EXPECT_EQ(Last(Pages(0, 25)), std::nullopt);
}

TEST_F(FetchablePagesTest, LastLooksBeyondItsFirstPiece) {
  state_->MarkReceived(Pages(1, 199), false);
  EXPECT_EQ(Last(Pages(0, 200)), Pages(0, 1));
}

}  // namespace
}  // namespace postcopy
