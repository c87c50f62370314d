#include "dirtytrack/merged_source.h"

#include <memory>
#include <utility>
#include <vector>

#include "dirtytrack/simulated_dirty_source.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using Tracking = SimulatedDirtySource::Tracking;

constexpr PageCount kPages{100};

class MergedSourceTest : public testing::Test {
 protected:
  MergedSourceTest() : into_(*PageBitmap::Create(kPages)) {
    auto vcpus =
        std::make_unique<SimulatedDirtySource>(kPages, Tracking::kTwoSteps);
    auto device = std::make_unique<SimulatedDirtySource>(kPages);
    vcpus_ = vcpus.get();
    device_ = device.get();
    std::vector<std::unique_ptr<DirtySource>> sources;
    sources.push_back(std::move(vcpus));
    sources.push_back(std::move(device));
    merged_ = std::make_unique<MergedSource>(std::move(sources));
  }

  void StartClean() {
    ASSERT_TRUE(merged_->Start().ok());
    into_.view().SetRun({PageIndex(0), kPages});
    ASSERT_TRUE(merged_->Clear(into_.view(), {PageIndex(0), kPages}).ok());
    into_.Reset();
  }

  SimulatedDirtySource* vcpus_;
  SimulatedDirtySource* device_;
  std::unique_ptr<MergedSource> merged_;
  PageBitmap into_;
};

TEST_F(MergedSourceTest, DirtyIsWhatAnySays) {
  StartClean();
  vcpus_->Mark(PageIndex(1));
  vcpus_->Mark(PageIndex(2));
  device_->Mark(PageIndex(2));
  device_->Mark(PageIndex(3));
  EXPECT_EQ(*merged_->Collect(into_.view()), PageCount(3));
  EXPECT_EQ(into_.view().Count(), PageCount(3));
}

// The page is about to be sent because a device wrote it: that the vCPU had
// written it too is no reason to send it again.
TEST_F(MergedSourceTest, APageThatBothWroteIsSentOnce) {
  StartClean();
  device_->Mark(PageIndex(2));
  ASSERT_TRUE(merged_->Collect(into_.view()).ok());
  vcpus_->Mark(PageIndex(2));
  ASSERT_TRUE(merged_->Clear(into_.view(), {PageIndex(0), kPages}).ok());
  into_.Reset();
  EXPECT_EQ(*merged_->Collect(into_.view()), PageCount(0));
}

TEST_F(MergedSourceTest, AllAreAskedAlsoIfOneFails) {
  StartClean();
  device_->Mark(PageIndex(3));
  vcpus_->FailNextCollect(absl::UnavailableError("injected"));
  EXPECT_EQ(merged_->Collect(into_.view()).status(),
            absl::UnavailableError("injected"));
  EXPECT_TRUE(into_.view().Test(PageIndex(3)));
  vcpus_->FailNextClear(absl::InternalError("clear"));
  EXPECT_EQ(merged_->Clear(into_.view(), {PageIndex(0), kPages}),
            absl::InternalError("clear"));
  vcpus_->FailNextStop(absl::InternalError("stop"));
  EXPECT_EQ(merged_->Stop(), absl::InternalError("stop"));
  EXPECT_FALSE(device_->started());
}

TEST_F(MergedSourceTest, StartsAllOrNone) {
  device_->FailNextStart(absl::InternalError("injected"));
  EXPECT_EQ(merged_->Start(), absl::InternalError("injected"));
  EXPECT_FALSE(vcpus_->started());
  EXPECT_TRUE(merged_->Start().ok());
  EXPECT_TRUE(vcpus_->started() && device_->started());
}

TEST_F(MergedSourceTest, RestoredPagesComeAgainOnce) {
  StartClean();
  into_.view().TestAndSet(PageIndex(7));
  ASSERT_TRUE(merged_->Restore(into_.view()).ok());
  EXPECT_EQ(vcpus_->Pending(), PageCount(1));
  EXPECT_EQ(device_->Pending(), PageCount(0));
}

}  // namespace
}  // namespace postcopy
