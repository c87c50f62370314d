#include "cmd/demovm/dirty_tracking.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy::demovm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string ErrorOf(absl::string_view name, absl::string_view guest) {
  const absl::Status status = ChooseTracking(name, guest).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
      << name << " " << guest;
  return std::string(status.message());
}

TEST(ChooseTrackingTest, AGuestOfKvm) {
  EXPECT_EQ(ChooseTracking("kvm-log", "kvm")->kvm, KvmTracking::kLog);
  EXPECT_EQ(ChooseTracking("kvm-manual", "kvm")->kvm, KvmTracking::kManual);
  EXPECT_EQ(ChooseTracking("kvm-ring", "kvm")->kvm, KvmTracking::kRing);
  EXPECT_FALSE(ChooseTracking("kvm-ring", "kvm")->pagemap_scan);
  EXPECT_TRUE(ChooseTracking("pagemap-scan", "kvm")->pagemap_scan);
  EXPECT_EQ(ChooseTracking("", "kvm")->kvm, KvmTracking::kManual);
  EXPECT_FALSE(ChooseTracking("", "kvm")->pagemap_scan);
}

TEST(ChooseTrackingTest, AProcess) {
  EXPECT_FALSE(ChooseTracking("log", "process")->pagemap_scan);
  EXPECT_FALSE(ChooseTracking("", "process")->pagemap_scan);
  EXPECT_TRUE(ChooseTracking("pagemap-scan", "process")->pagemap_scan);
}

TEST(ChooseTrackingTest, SaysWhatContradicts) {
  for (const char* name : {"kvm-log", "kvm-manual", "kvm-ring"}) {
    EXPECT_THAT(
        ErrorOf(name, "process"),
        AllOf(HasSubstr(name), HasSubstr("needs --guest=kvm"),
              HasSubstr("with --guest=process it must be log or pagemap")));
  }
  EXPECT_THAT(ErrorOf("log", "kvm"),
              AllOf(HasSubstr("is for --guest=process"),
                    HasSubstr("with --guest=kvm it must be kvm-log")));
}

TEST(ChooseTrackingTest, SaysWhatThereIs) {
  EXPECT_THAT(ErrorOf("kvm", "kvm"),
              HasSubstr("must be kvm-log, kvm-manual, kvm-ring or pagemap"));
  EXPECT_THAT(ErrorOf("kvm", "process"), HasSubstr("log or pagemap-scan"));
  EXPECT_THAT(ErrorOf("log", "qemu"), HasSubstr("kvm or process"));
}

}  // namespace
}  // namespace postcopy::demovm
