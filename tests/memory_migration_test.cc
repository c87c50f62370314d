// Whole migrations of a guest whose memory is not shared, or not of small
// pages, at the source, at the destination, or at both; the guest checks its
// memory as it runs and once more, all of it, at the end.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>

#include "absl/status/status.h"
#include "cmd/demovm/guest_ram.h"
#include "dirtytrack/write_tracking.h"
#include "tests/two_hosts.h"

namespace postcopy {
namespace {

using demovm::GuestRam;
using demovm::RamKind;
using ::testing::Combine;
using ::testing::Test;
using ::testing::Values;
using ::testing::WithParamInterface;
using DirtyTracking = demovm::DemoVmm::DirtyTracking;

constexpr char kVm[] = "guest";
constexpr ByteCount kRam{16 << 20};
// Slow enough that postcopy lasts until the test has done what it wants in it.
constexpr uint64_t kSlowBulk = 4 << 20;

#define ASSERT_OK(expression)                        \
  do {                                               \
    const absl::Status& status_ = (expression);      \
    ASSERT_TRUE(status_.ok()) << status_.ToString(); \
  } while (false)

std::string NameOf(RamKind kind) {
  switch (kind) {
    case RamKind::kShared:
      return "Shared";
    case RamKind::kPrivate:
      return "Private";
    case RamKind::kHuge:
      return "Huge";
    case RamKind::kHugePrivate:
      return "HugePrivate";
  }
  return "";
}

class MemoryMigrationTest : public Test {
 protected:
  void SetUp() override {
    const std::string why = WhyNoUserfaultfd();
    if (!why.empty()) GTEST_SKIP() << "no userfaultfd: " << why;
  }

  // Skips where the host has too few huge pages.
  void Begin(TwoHosts::Options options) {
    options.ram = kRam;
    {
      // Both at once, since both are there at once.
      const auto one = GuestRam::Create(kRam, kRam, options.source_memory);
      const auto two = GuestRam::Create(kRam, kRam, options.destination_memory);
      for (const auto* ram : {&one, &two}) {
        if (absl::IsResourceExhausted(ram->status())) {
          GTEST_SKIP() << ram->status();
        }
        ASSERT_OK(ram->status());
      }
    }
    auto hosts = TwoHosts::Create(options);
    ASSERT_OK(hosts.status());
    hosts_ = *std::move(hosts);
    ASSERT_OK(hosts_->AttachBoth(kVm));
  }

  void SwitchOver() {
    ASSERT_OK(hosts_->AwaitSource(
        kVm, [](const v1::Migration& m) { return m.advice().recommended(); }));
    ASSERT_OK(hosts_->AwaitSource(kVm, [](const v1::Migration& m) {
      return m.state() == v1::MIGRATION_STATE_PRECOPY;
    }));
    ASSERT_OK(hosts_->SwitchOver(kVm));
  }

  // The guest is at the destination, with every byte right.
  void ExpectArrived() {
    ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
    EXPECT_EQ(hosts_->AtDestination(kVm).state(), v1::MIGRATION_STATE_COMPLETED)
        << hosts_->AtDestination(kVm).ShortDebugString();
    ASSERT_OK(hosts_->AwaitSource(kVm, MigrationHasEnded));
    // Nothing of the source is needed any more.
    hosts_->EndSourceDaemon();
    hosts_->KillSourceVmm();
    const auto report = hosts_->FinishDestination();
    ASSERT_OK(report.status());
    EXPECT_EQ(report->progress.mismatches, 0u);
    ASSERT_TRUE(report->verdict.has_value());
    EXPECT_TRUE(report->verdict->ok()) << ToString(*report->verdict);
    EXPECT_GT(report->progress.steps, 0u);
  }

  std::unique_ptr<TwoHosts> hosts_;
};

struct Kinds {
  RamKind source;
  RamKind destination;
};

class EveryMemoryTest
    : public MemoryMigrationTest,
      public WithParamInterface<
          std::tuple<Kinds, v1::MigrationPolicy, DirtyTracking>> {};

TEST_P(EveryMemoryTest, RunningGuestArrivesWhole) {
  const auto [kinds, policy, tracking] = GetParam();
  if (tracking == DirtyTracking::kPagemapScan) {
    const absl::Status possible = WriteTracking::Create({}).status();
    if (!possible.ok()) GTEST_SKIP() << possible;
  }
  Begin({.source_memory = kinds.source,
         .destination_memory = kinds.destination,
         .dirty_tracking = tracking});
  if (hosts_ == nullptr) return;
  ASSERT_OK(hosts_->CreateBoth(kVm, policy));
  SwitchOver();
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  const v1::Migration source = hosts_->AtSource(kVm);
  const v1::Migration destination = hosts_->AtDestination(kVm);
  EXPECT_EQ(destination.pages().remaining(), 0u);
  if (policy == v1::MIGRATION_POLICY_POSTCOPY_ONLY) {
    EXPECT_EQ(destination.pages().precopied(), 0u);
    EXPECT_EQ(destination.pages().faulted() + destination.pages().background(),
              source.pages().total());
  } else {
    EXPECT_GE(destination.pages().precopied(), source.pages().total());
  }
  if (policy == v1::MIGRATION_POLICY_PRECOPY_ONLY) {
    EXPECT_EQ(destination.pages().faulted(), 0u);
  }
  ExpectArrived();
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, EveryMemoryTest,
    Combine(Values(Kinds{RamKind::kShared, RamKind::kPrivate},
                   Kinds{RamKind::kPrivate, RamKind::kShared},
                   Kinds{RamKind::kPrivate, RamKind::kPrivate},
                   Kinds{RamKind::kShared, RamKind::kHuge},
                   Kinds{RamKind::kHuge, RamKind::kPrivate},
                   Kinds{RamKind::kHuge, RamKind::kHuge},
                   Kinds{RamKind::kHugePrivate, RamKind::kHugePrivate}),
            Values(v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                   v1::MIGRATION_POLICY_POSTCOPY_ONLY,
                   v1::MIGRATION_POLICY_PRECOPY_ONLY),
            Values(DirtyTracking::kLog, DirtyTracking::kPagemapScan)),
    [](const auto& info) {
      const Kinds kinds = std::get<0>(info.param);
      return NameOf(kinds.source) + "To" + NameOf(kinds.destination) + "_" +
             v1::MigrationPolicy_Name(std::get<1>(info.param)) +
             (std::get<2>(info.param) == DirtyTracking::kLog ? "_LOG"
                                                             : "_PAGEMAP_SCAN");
    });

class SourceLostTest : public MemoryMigrationTest,
                       public WithParamInterface<RamKind> {};

// The network fails with huge pages half here: they are asked for again.
TEST_P(SourceLostTest, PagesThatWereUnderWayAreAskedForAgain) {
  Begin({.destination_memory = GetParam()});
  if (hosts_ == nullptr) return;
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                               kSlowBulk));
  SwitchOver();
  for (uint32_t times = 1; times <= 2; ++times) {
    hosts_->network().Cut();
    ASSERT_OK(hosts_->AwaitDestination(kVm, [times](const v1::Migration& m) {
      return m.recoveries() >= times || MigrationHasEnded(m);
    }));
  }
  ExpectArrived();
}

// Before the switch-over everything can be undone.
TEST_P(SourceLostTest, ACancelledMigrationLeavesTheGuestAtTheSource) {
  Begin({.destination_memory = GetParam()});
  if (hosts_ == nullptr) return;
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                               kSlowBulk));
  ASSERT_OK(hosts_->AwaitDestination(
      kVm, [](const v1::Migration& m) { return m.pages().precopied() > 0; }));
  ASSERT_OK(hosts_->CancelAtDestination(kVm));
  ASSERT_OK(hosts_->AwaitSource(kVm, MigrationHasEnded));
  const auto report = hosts_->FinishSource();
  ASSERT_OK(report.status());
  ASSERT_TRUE(report->verdict.has_value());
  EXPECT_TRUE(report->verdict->ok()) << ToString(*report->verdict);
}

INSTANTIATE_TEST_SUITE_P(Kinds, SourceLostTest,
                         Values(RamKind::kPrivate, RamKind::kHuge,
                                RamKind::kHugePrivate),
                         [](const auto& info) { return NameOf(info.param); });

}  // namespace
}  // namespace postcopy
