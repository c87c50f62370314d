// Whole migrations of a VMM in C that knows the shared library and nothing else
// of this project (cmd/vmm_library/example.c), between real daemons.

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cmd/process/child_process.h"
#include "tests/two_hosts.h"

namespace postcopy {
namespace {

constexpr char kVm[] = "guest";
constexpr char kExample[] = "cmd/vmm_library/example";
constexpr absl::Duration kPatience = absl::Minutes(1);

// One run of the example.
class Example {
 public:
  // Starts it; nothing if that fails.
  Example(const TwoHosts& hosts, const std::string& role)
      : output_(hosts.directory() + "/" + role + ".log") {
    auto started = ChildProcess::Start(
        {.argv = {kExample, role, hosts.directory() + "/" + role + ".sock",
                  kVm},
         .stdout_path = output_,
         .stderr_path = output_});
    EXPECT_TRUE(started.ok()) << started.status();
    if (started.ok()) child_.emplace(*std::move(started));
  }

  std::string output() const {
    std::ifstream file(output_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Waits until it has printed `text`; false if it never will.
  bool AwaitOutput(const std::string& text) {
    const absl::Time end = absl::Now() + kPatience;
    while (!absl::StrContains(output(), text)) {
      if (!child_.has_value() || absl::Now() > end) return false;
      const auto ended = child_->Wait(absl::Milliseconds(10));
      if (ended.ok()) return absl::StrContains(output(), text);
    }
    return true;
  }
  // Its exit code; -1 if a signal ended it, -2 if nothing did.
  int AwaitEnd() {
    if (!child_.has_value()) return -2;
    const auto ended = child_->Wait(kPatience);
    return ended.ok() ? ended->code : -2;
  }

 private:
  std::string output_;
  std::optional<ChildProcess> child_;
};

class VmmLibraryTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string why = WhyNoUserfaultfd();
    if (!why.empty()) GTEST_SKIP() << "no userfaultfd: " << why;
    auto hosts = TwoHosts::Create({});
    ASSERT_TRUE(hosts.ok()) << hosts.status();
    hosts_ = *std::move(hosts);
    source_.emplace(*hosts_, "source");
    destination_.emplace(*hosts_, "destination");
    ASSERT_TRUE(source_->AwaitOutput("attached")) << source_->output();
    ASSERT_TRUE(destination_->AwaitOutput("attached"))
        << destination_->output();
  }

  // Until a whole round of pages has been sent, so that some are sent twice.
  absl::Status AwaitPrecopy() {
    return hosts_->AwaitSource(kVm, [](const v1::Migration& m) {
      return m.state() == v1::MIGRATION_STATE_PRECOPY &&
             (m.policy() == v1::MIGRATION_POLICY_POSTCOPY_ONLY ||
              m.rounds() > 1);
    });
  }

  std::unique_ptr<TwoHosts> hosts_;
  std::optional<Example> source_;
  std::optional<Example> destination_;
};

class PolicyTest : public VmmLibraryTest,
                   public testing::WithParamInterface<v1::MigrationPolicy> {};

INSTANTIATE_TEST_SUITE_P(
    Each, PolicyTest,
    testing::Values(v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                    v1::MIGRATION_POLICY_POSTCOPY_ONLY));

TEST_P(PolicyTest, AGuestMovesWithAllItsMemory) {
  const absl::Status created = hosts_->CreateBoth(kVm, GetParam());
  ASSERT_TRUE(created.ok()) << created;
  ASSERT_TRUE(AwaitPrecopy().ok());
  const absl::Status switched = hosts_->SwitchOver(kVm);
  ASSERT_TRUE(switched.ok()) << switched;
  EXPECT_EQ(source_->AwaitEnd(), 0) << source_->output();
  EXPECT_EQ(destination_->AwaitEnd(), 0) << destination_->output();
  EXPECT_TRUE(absl::StrContains(destination_->output(), " 0 wrong pages"))
      << destination_->output();
}

TEST_F(VmmLibraryTest, AMigrationThatIsCancelledEndsBoth) {
  ASSERT_TRUE(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY).ok());
  ASSERT_TRUE(AwaitPrecopy().ok());
  ASSERT_TRUE(hosts_->CancelAtSource(kVm).ok());
  EXPECT_EQ(source_->AwaitEnd(), 3) << source_->output();
  EXPECT_EQ(destination_->AwaitEnd(), 3) << destination_->output();
}

TEST_F(VmmLibraryTest, ADaemonThatEndsLeavesTheGuestWhereItIs) {
  hosts_->EndSourceDaemon();
  EXPECT_EQ(source_->AwaitEnd(), 3);
  EXPECT_TRUE(absl::StrContains(source_->output(), "the guest goes on here"))
      << source_->output();
  hosts_->EndDestinationDaemon();
  EXPECT_EQ(destination_->AwaitEnd(), 3);
  EXPECT_TRUE(absl::StrContains(destination_->output(), "must not run here"))
      << destination_->output();
}

TEST_F(VmmLibraryTest, WhoIsRefusedSaysWhy) {
  Example second(*hosts_, "source");
  EXPECT_EQ(second.AwaitEnd(), 1);
  EXPECT_TRUE(absl::StrContains(second.output(), "example: attach: "))
      << second.output();
}

}  // namespace
}  // namespace postcopy
