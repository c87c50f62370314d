#include "uffd/pull_order.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr PageCount kMax{64};

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

class AfterFaultOrderTest : public testing::Test {
 protected:
  std::optional<PageRun> Next() {
    return order_.NextRun(*state_, requested_, kMax);
  }

  std::unique_ptr<PageState> state_ = *PageState::Create(PageCount(200));
  std::vector<PageRun> requested_;
  AfterFaultOrder order_;
};

TEST_F(AfterFaultOrderTest, GoesUpwardsAndAround) {
  EXPECT_EQ(Next(), Pages(0, 64));
  EXPECT_EQ(Next(), Pages(64, 64));
  EXPECT_EQ(Next(), Pages(128, 64));
  EXPECT_EQ(Next(), Pages(192, 8));
  EXPECT_EQ(Next(), Pages(0, 64));
}

TEST_F(AfterFaultOrderTest, SkipsWhatIsReceived) {
  state_->MarkReceived(Pages(0, 10), false);
  state_->MarkReceived(Pages(20, 170), true);
  EXPECT_EQ(Next(), Pages(10, 10));
  EXPECT_EQ(Next(), Pages(190, 10));
  state_->MarkReceived(Pages(0, 200), true);
  EXPECT_EQ(Next(), std::nullopt);
}

TEST_F(AfterFaultOrderTest, ContinuesBehindTheLastFault) {
  EXPECT_EQ(Next(), Pages(0, 64));
  order_.OnFault(Pages(30, 1));
  order_.OnFault(Pages(149, 1));
  EXPECT_EQ(Next(), Pages(150, 50));
  EXPECT_EQ(Next(), Pages(0, 64));
}

TEST_F(AfterFaultOrderTest, AFaultOnTheLastPageBeginsAnew) {
  order_.OnFault(Pages(199, 1));
  EXPECT_EQ(Next(), Pages(0, 64));
}

TEST_F(AfterFaultOrderTest, SkipsWhatIsRequested) {
  requested_ = {Pages(0, 64), Pages(100, 50)};
  EXPECT_EQ(Next(), Pages(64, 36));
  EXPECT_EQ(Next(), Pages(150, 50));
  order_.OnFault(Pages(120, 1));
  EXPECT_EQ(Next(), Pages(150, 50));
  requested_ = {Pages(100, 100), Pages(0, 100)};
  EXPECT_EQ(Next(), std::nullopt);
}

}  // namespace
}  // namespace postcopy
