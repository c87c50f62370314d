#include "cmd/demo/demo_options.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1024 * 1024;

void ExpectInvalid(const DemoOptions& options, const std::string& sentence) {
  absl::Status status = ValidateDemoOptions(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(sentence));
}

TEST(ValidateTest, TheDefaultsAreFine) {
  EXPECT_TRUE(ValidateDemoOptions(DemoOptions()).ok());
}

TEST(ValidateTest, RamHasItsLimits) {
  for (uint64_t mib : {16, 17, 1024 * 1024}) {
    EXPECT_TRUE(ValidateDemoOptions({.ram = ByteCount(mib * kMiB)}).ok());
  }
  ExpectInvalid({.ram = ByteCount(15 * kMiB)}, "--ram=15MiB");
  ExpectInvalid({.ram = ByteCount(1024 * 1025 * kMiB)}, "--ram=");
  ExpectInvalid({.ram = ByteCount(16 * kMiB + 4096)}, "whole MiB");
}

TEST(ValidateTest, SaysWhatIsWrong) {
  ExpectInvalid({.vcpus = 0}, "--vcpus must be 1 to 8");
  ExpectInvalid({.vcpus = 9}, "--vcpus must be 1 to 8");
  ExpectInvalid({.guest = "qemu"}, "kvm or process");
  ExpectInvalid({.memory = "large"}, "shared, private, huge or huge-private");
  ExpectInvalid({.dirty_tracking = "kvm"}, "kvm-ring or pagemap-scan");
  ExpectInvalid({.guest = "process", .dirty_tracking = "kvm-ring"},
                "needs --guest=kvm");
  ExpectInvalid({.policy = "x"}, "--policy=x");
  ExpectInvalid({.output = "x"}, "--output=x");
  ExpectInvalid({.bandwidth = ByteCount(1)}, "--bandwidth=1");
  ExpectInvalid({.write_rate = "fast"}, "--write_rate=fast");
  ExpectInvalid({.write_rate = "1KiB"}, "whole MiB");
  ExpectInvalid({.security = "x"}, "--security=x");
  ExpectInvalid({.run_after = absl::Hours(1)}, "--run_after");
  ExpectInvalid({.run_after = absl::Seconds(-1)}, "--run_after");
}

TEST(BandwidthTest, IsTwiceAsMuchForMoreThanOneGib) {
  EXPECT_EQ(DefaultBandwidth(ByteCount(64 * kMiB)), ByteCount(64 * kMiB));
  EXPECT_EQ(DefaultBandwidth(ByteCount(1024 * kMiB)), ByteCount(64 * kMiB));
  EXPECT_EQ(DefaultBandwidth(ByteCount(1025 * kMiB)), ByteCount(128 * kMiB));
}

TEST(WriteRateTest, IsInMiB) {
  EXPECT_EQ(WriteRateMib("").value(), 0u);
  EXPECT_EQ(WriteRateMib("0").value(), 0u);
  EXPECT_EQ(WriteRateMib("1GiB").value(), 1024u);
}

TEST(MemoryTest, ComparesWithWhatIsAvailable) {
  // 2 x 512 MiB + 1 GiB = 2097152 KiB.
  const std::string before = "MemTotal: 99999999 kB\nMemAvailable:    ";
  EXPECT_TRUE(CheckMemory(ByteCount(512 * kMiB), before + "2097152 kB\n").ok());
  absl::Status status =
      CheckMemory(ByteCount(512 * kMiB), before + "2097151 kB\n");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("need 2.0 GiB"), HasSubstr("smaller --ram")));
}

TEST(MemoryTest, AFileWithoutTheLineRefusesNothing) {
  EXPECT_TRUE(CheckMemory(ByteCount(512 * kMiB), "").ok());
  EXPECT_TRUE(CheckMemory(ByteCount(512 * kMiB), "MemAvailable: x kB").ok());
}

TEST(ProgramsTest, LooksBesideItselfUnlessTold) {
  auto programs = FindPrograms(
      "/nowhere/cmd/demo/demo",
      {.pageserverd = "/bin/sh", .faultd = "/bin/sh", .demovm = ""});
  EXPECT_EQ(programs.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(programs.status().message()),
              HasSubstr("/nowhere/cmd/demo/../demovm/demovm"));
  programs = FindPrograms(
      "/x",
      {.pageserverd = "/bin/sh", .faultd = "/bin/sh", .demovm = "/bin/sh"});
  ASSERT_TRUE(programs.ok());
  EXPECT_EQ(programs->demovm, "/bin/sh");
}

}  // namespace
}  // namespace postcopy
