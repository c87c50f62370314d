#include "cmd/daemon/vm_limits.h"

#include <sys/resource.h>

#include <memory>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr uint64_t kNeeded = kDescriptorsOfDaemon + 10 * kDescriptorsPerVm;

TEST(VmLimitsTest, AsManyAsAskedForWhereTheDescriptorsSuffice) {
  const auto limit = FitVms(10, kDescriptorsPerVm, kNeeded);
  ASSERT_TRUE(limit.ok()) << limit.status();
  EXPECT_EQ(limit->vms_max, 10u);
  EXPECT_EQ(limit->note, "");
}

TEST(VmLimitsTest, OneDescriptorTooFewIsOneVmLess) {
  const auto limit = FitVms(10, kDescriptorsPerVm, kNeeded - 1);
  ASSERT_TRUE(limit.ok()) << limit.status();
  EXPECT_EQ(limit->vms_max, 9u);
  EXPECT_NE(limit->note.find("raise LimitNOFILE to 2112"), std::string::npos)
      << limit->note;
}

TEST(VmLimitsTest, ADaemonThatCannotTakeOneVmSaysSo) {
  EXPECT_TRUE(
      FitVms(1, kDescriptorsPerVm, kDescriptorsOfDaemon + kDescriptorsPerVm)
          .ok());
  for (const uint64_t descriptors :
       {uint64_t{0}, uint64_t{kDescriptorsOfDaemon},
        uint64_t{kDescriptorsOfDaemon + kDescriptorsPerVm - 1}}) {
    const absl::Status status =
        FitVms(1, kDescriptorsPerVm, descriptors).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_NE(status.message().find("LimitNOFILE"), std::string::npos);
  }
}

TEST(VmLimitsTest, NoneAndTooManyAreNoLimit) {
  EXPECT_TRUE(absl::IsInvalidArgument(
      FitVms(0, kDescriptorsPerVm, UINT64_MAX).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      FitVms(kMaxVms + 1, kDescriptorsPerVm, UINT64_MAX).status()));
  const auto most = FitVms(kMaxVms, kDescriptorsPerVm, UINT64_MAX);
  ASSERT_TRUE(most.ok()) << most.status();
  EXPECT_EQ(most->vms_max, kMaxVms);
}

// What docs/operations.md says of LimitNOFILE.
TEST(VmLimitsTest, TheGreatestDaemonFitsIntoWhatIsAdvised) {
  EXPECT_EQ(
      FitVms(kMaxVms, kDescriptorsPerVm + kDescriptorsPerSnapshotVm, 65536)
          ->vms_max,
      kMaxVms);
}

TEST(VmLimitsTest, TheSoftLimitIsRaisedToTheHardOne) {
  rlimit limit = {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = limit.rlim_max / 2;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(RaiseDescriptorLimit(), limit.rlim_max);
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(limit.rlim_cur, limit.rlim_max);
}

TEST(VmLimitsTest, ARefusalSaysWhatToDo) {
  EXPECT_EQ(TooManyVms(3),
            "3 VMs are attached, as many as this daemon is set to take: end "
            "one, use another host, or start the daemon with more by --vms_max "
            "(at most 256) and LimitNOFILE");
  EXPECT_EQ(
      TooManyVms(3, 1),
      TooManyVms(3) + "; 1 of them have gone and are being let go: try again");
}

TEST(HeldVmsTest, AVmCountsUntilTheLastOfItHasGone) {
  HeldVms held;
  std::shared_ptr<const void> first = held.Hold();
  const std::shared_ptr<const void> second = held.Hold();
  std::shared_ptr<const void> copy = first;
  EXPECT_EQ(held.count(), 2u);
  first.reset();
  EXPECT_EQ(held.count(), 2u);
  EXPECT_FALSE(held.AwaitBelow(2, absl::ZeroDuration()));
  EXPECT_TRUE(held.AwaitBelow(3, absl::ZeroDuration()));
  copy.reset();
  EXPECT_EQ(held.count(), 1u);
  EXPECT_TRUE(held.AwaitBelow(2, absl::ZeroDuration()));
}

TEST(HeldVmsTest, WhoWaitsIsToldOfOneThatGoes) {
  HeldVms held;
  std::shared_ptr<const void> vm = held.Hold();
  std::thread leaving([&] { vm.reset(); });
  EXPECT_TRUE(held.AwaitBelow(1, absl::Minutes(1)));
  leaving.join();
}

TEST(HeldVmsTest, AVmMayOutliveTheCount) {
  std::shared_ptr<const void> vm;
  {
    HeldVms held;
    vm = held.Hold();
  }
  vm.reset();
}

}  // namespace
}  // namespace postcopy
