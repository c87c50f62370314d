#include "uffd/linear_policy.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/page_state.h"

namespace postcopy {
namespace {

constexpr PageCount kMax{64};

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

TEST(LinearPolicyTest, GoesUpwardsAndAround) {
  const auto state = *PageState::Create(PageCount(100));
  const FetchablePages pages(state.get(), {});
  LinearPolicy policy(LinearPolicy::Faults::kIgnore);
  EXPECT_EQ(policy.NextRun(pages, kMax), Pages(0, 64));
  policy.NoteFault(Pages(10, 1));
  EXPECT_EQ(policy.NextRun(pages, kMax), Pages(64, 36));
  EXPECT_EQ(policy.NextRun(pages, kMax), Pages(0, 64));
  state->MarkReceived(Pages(0, 100), false);
  EXPECT_EQ(policy.NextRun(pages, kMax), std::nullopt);
}

TEST(LinearPolicyTest, FollowsTheLastFault) {
  const auto state = *PageState::Create(PageCount(100));
  const FetchablePages pages(state.get(), {});
  LinearPolicy policy(LinearPolicy::Faults::kFollow);
  policy.NoteFault(Pages(10, 1));
  policy.NoteFault(Pages(79, 1));
  EXPECT_EQ(policy.NextRun(pages, kMax), Pages(80, 20));
  EXPECT_EQ(policy.NextRun(pages, kMax), Pages(0, 64));
}

TEST(LinearPolicyTest, OfAHugePageGoesOnBehindAllOfIt) {
  const auto state = *PageState::Create(PageCount(1536));
  const FetchablePages pages(state.get(), {});
  LinearPolicy policy(LinearPolicy::Faults::kFollow);
  policy.NoteFault(Pages(512, 512));
  EXPECT_EQ(policy.NextRun(pages, kMax), Pages(1024, 64));
}

}  // namespace
}  // namespace postcopy
