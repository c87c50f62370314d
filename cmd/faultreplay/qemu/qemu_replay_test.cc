// Real QEMUs where one is installed; else what does not need one.
#include "cmd/faultreplay/qemu/qemu_replay.h"

#include <unistd.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/qemu/guest_image.h"
#include "cmd/faultreplay/samples.h"
#include "dirtytrack/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

constexpr char kQemu[] = "/usr/bin/qemu-system-x86_64";
constexpr PageCount kPages{4096};

// Touches of pages far from each other, each twice, every third a write.
TouchPlan TestPlan(PageCount pages, size_t touches) {
  TouchPlan plan = {.pages = pages};
  plan.threads.emplace_back();
  for (size_t i = 0; i < touches; ++i) {
    plan.threads[0].push_back(
        {.page = PageIndex(i / 2 * 1031 % pages.value()), .write = i % 3 == 0});
  }
  return plan;
}

class QemuReplayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::access(kQemu, X_OK) != 0) {
      GTEST_SKIP() << "QEMU is not installed: there is no " << kQemu;
    }
    if (::access("/dev/kvm", R_OK | W_OK) != 0) {
      GTEST_SKIP() << "/dev/kvm is missing";
    }
  }

  absl::StatusOr<RunResult> Replay(const QemuReplayOptions& options,
                                   std::optional<PageIndex> lost = {}) {
    const auto source = SourceMemory::Create(kPages, lost);
    if (!source.ok()) return source.status();
    return RunQemuReplay(TestPlan(kPages, 200), *source, options);
  }
};

TEST_F(QemuReplayTest, EveryPageComesAndTouchesAreMeasured) {
  for (const bool preempt : {false, true}) {
    const auto result = Replay({.program = kQemu, .preempt = preempt});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->touches, 200u);
    EXPECT_EQ(result->first_touches, 100u);
    EXPECT_EQ(result->waits.size() + result->avoided, 100u);
    EXPECT_EQ(result->pages_total, kPages.value());
    EXPECT_EQ(result->checked, kPages.value());
    EXPECT_EQ(result->wrong, 0u);
    EXPECT_GT(result->whole_ns, 0);
    EXPECT_GT(result->backend.downtime_ns, 0);
    EXPECT_GT(result->backend.migration_ns, result->whole_ns);
    EXPECT_LE(SumOfWaits(result->waits), result->duration_ns);
    EXPECT_THAT(result->backend.note, HasSubstr("pages were asked for"));
  }
}

// The whole RAM at this rate takes two seconds, and a proxy adds to each touch
// of a page that has to be asked for.
TEST_F(QemuReplayTest, ALimitAndADelayAreSeen) {
  const auto result = Replay({.program = kQemu,
                              .bandwidth = ByteCount(8 << 20),
                              .delay_ns = 2 * kNanosPerMilli});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(result->whole_ns, kNanosPerSecond / 2);
  ASSERT_FALSE(result->waits.empty());
  EXPECT_GE(SortedLatencies(result->waits).back(), 4 * kNanosPerMilli);
  EXPECT_FALSE(result->residency.empty());
}

TEST_F(QemuReplayTest, ALostPageIsFoundWhetherTouchedOrNot) {
  for (const uint64_t page : {1031u, 1u}) {
    const auto result = Replay({.program = kQemu}, PageIndex(page));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->wrong, 1u);
    EXPECT_EQ(result->first_wrong, page);
  }
}

TEST_F(QemuReplayTest, WhatIsNotOverInTimeIsGivenUp) {
  const auto result = Replay({.program = kQemu,
                              .bandwidth = ByteCount(1 << 20),
                              .timeout = absl::Milliseconds(300)});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded)
      << result.status();
}

TEST_F(QemuReplayTest, AProgramThatIsNoQemuIsToldSo) {
  const auto result = Replay({.program = "/bin/false"});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("exit code 1"));
}

TEST(CheckQemuPlanTest, LimitOfTouches) {
  EXPECT_TRUE(CheckQemuPlan(TestPlan(kPages, kGuestTouchesMax)).ok());
  EXPECT_EQ(CheckQemuPlan(TestPlan(kPages, kGuestTouchesMax + 1)).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CheckQemuPlanTest, LimitOfRam) {
  const PageCount most = PagesIn(kGuestMemoryMax - GuestOwnBytes(2));
  EXPECT_TRUE(CheckQemuPlan(TestPlan(most, 2)).ok());
  EXPECT_EQ(CheckQemuPlan(TestPlan(most + PageCount(1), 2)).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CheckQemuPlanTest, OneThreadWithoutPauses) {
  TouchPlan plan = TestPlan(kPages, 2);
  plan.threads[0][1].think_ns = 1;
  EXPECT_EQ(CheckQemuPlan(plan).code(), absl::StatusCode::kInvalidArgument);
  plan = TestPlan(kPages, 2);
  plan.threads.push_back(plan.threads[0]);
  EXPECT_EQ(CheckQemuPlan(plan).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace postcopy
