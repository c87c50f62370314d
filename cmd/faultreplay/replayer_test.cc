#include "cmd/faultreplay/replayer.h"

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "cmd/faultreplay/experiment.h"
#include "cmd/faultreplay/local_backend.h"
#include "cmd/faultreplay/synth.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/userfaultfd.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

TouchPlan Plan(const std::string& pattern, uint64_t pages, size_t touches,
               uint32_t threads) {
  const auto trace = Synthesize({.patterns = *ParsePatterns(pattern),
                                 .pages = PageCount(pages),
                                 .touches = touches,
                                 .threads = threads,
                                 .write_percent = 30});
  EXPECT_TRUE(trace.ok()) << trace.status();
  auto plan = PlanTouches(*trace, /*think=*/false);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

class LocalReplayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto uffd = CreateUserfaultfd();
    if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  }

  absl::StatusOr<RunResult> Run(const TouchPlan& plan, int64_t delay_ns = 0,
                                std::optional<PageIndex> lost = {}) {
    auto source = SourceMemory::Create(plan.pages, lost);
    EXPECT_TRUE(source.ok()) << source.status();
    const auto backend = NewLocalBackend(&*source, delay_ns);
    return RunReplay(plan, {}, backend.get());
  }
};

TEST_F(LocalReplayTest, EveryTouchAndEveryPageIsCounted) {
  const TouchPlan plan = Plan("uniform", 512, 2000, 4);
  const auto result = Run(plan);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(JudgeRun(*result).ok()) << JudgeRun(*result);
  EXPECT_EQ(result->touches, 2000u);
  EXPECT_GE(result->first_touches, plan.distinct.value());
  EXPECT_EQ(result->first_touches, result->waits.size() + result->avoided);
  EXPECT_EQ(result->checked, 512u);
  EXPECT_EQ(result->unused, 0u);
  EXPECT_EQ(result->backend.pages_moved, plan.distinct.value());
  EXPECT_GT(result->backend.cpu_ns, 0);
  EXPECT_FALSE(result->residency.empty());
  for (const Wait& wait : result->waits) {
    EXPECT_GE(wait.start_ns, 0);
    EXPECT_LE(wait.start_ns + wait.latency_ns, result->duration_ns);
  }
}

TEST_F(LocalReplayTest, ASlowedBackendIsSeenAsSlower) {
  const auto result =
      Run(Plan("sequential", 16, 16, 1), /*delay_ns=*/5 * kNanosPerMilli);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->waits.size(), 16u);
  const std::vector<int64_t> sorted = SortedLatencies(result->waits);
  EXPECT_GE(sorted.front(), 5 * kNanosPerMilli);
  EXPECT_GE(UnionOfWaits(result->waits), 16 * 5 * kNanosPerMilli);
}

TEST_F(LocalReplayTest, ALostPageFailsTheRunWhetherTouchedOrNot) {
  const TouchPlan plan = Plan("sequential", 64, 10, 1);
  for (uint64_t lost : {3, 50}) {
    const auto result = Run(plan, 0, PageIndex(lost));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->wrong, 1u);
    EXPECT_EQ(result->first_wrong, lost);
    EXPECT_EQ(JudgeRun(*result).code(), absl::StatusCode::kDataLoss);
  }
}

TEST(JudgeRunTest, PagesThatNobodyLookedAtFailTheRun) {
  RunResult result;
  result.pages_total = result.checked = 10;
  EXPECT_TRUE(JudgeRun(result).ok());
  result.checked = 9;
  EXPECT_EQ(JudgeRun(result).code(), absl::StatusCode::kDataLoss);
}

// Brings no page by itself, and some not at all.
class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(std::optional<PageIndex> never) : never_(never) {
    FillPage(PageIndex(0), PageVersion::kFinal, page_.data());
  }

  absl::Status Start() override { return absl::OkStatus(); }
  bool IsHere(PageIndex) override { return false; }
  PageCount CountHere() override { return PageCount(0); }
  bool IsOver() override { return !never_.has_value(); }
  const uint8_t* Touch(uint32_t, PageIndex page, bool) override {
    if (page == never_) given_up_.wait(false);
    return page_.data();
  }
  void GiveUp() override {
    given_up_.store(true);
    given_up_.notify_all();
  }
  absl::Status Report(BackendReport*) override { return absl::OkStatus(); }
  absl::Status Finish(BackendReport*) override {
    return absl::AbortedError("did not end well");
  }

 private:
  const std::optional<PageIndex> never_;
  alignas(8) std::array<uint8_t, kPageSize> page_;
  std::atomic<bool> given_up_{false};
};

TEST(RunReplayTest, APageThatNeverComesFailsTheRun) {
  FakeBackend backend(PageIndex(0));
  const auto result = RunReplay(Plan("sequential", 1, 1, 1),
                                {.timeout = absl::Milliseconds(50)}, &backend);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(absl::StrContains(result.status().message(), "1 touches"))
      << result.status();
}

// To look at the pages would bring those that were forgotten.
TEST(RunReplayTest, AMigrationThatDoesNotEndByItselfFailsTheRun) {
  FakeBackend backend(PageIndex(1));
  const auto result = RunReplay(
      Plan("sequential", 2, 1, 1),
      {.timeout = absl::Milliseconds(50), .await_whole = true}, &backend);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(absl::StrContains(result.status().message(), "by themselves"))
      << result.status();
}

TEST(RunReplayTest, ABackendThatDoesNotEndWellFailsTheRun) {
  FakeBackend backend(std::nullopt);
  const auto result = RunReplay(Plan("sequential", 1, 1, 1), {}, &backend);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kAborted);
}

TEST_F(LocalReplayTest, BackendsTakeTurns) {
  const auto trace = Synthesize({.patterns = *ParsePatterns("uniform"),
                                 .pages = PageCount(32),
                                 .touches = 100});
  ASSERT_TRUE(trace.ok());
  std::vector<std::string> order;
  ExperimentOptions options;
  options.title = "t";
  options.backends = *ParseBackends("local,local:delay=1ms");
  options.repeats = 2;
  options.progress = [&](const std::string& what) { order.push_back(what); };
  const auto report = RunExperiment(*trace, options);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->backends.size(), 2u);
  EXPECT_EQ(report->backends[0].runs.size(), 2u);
  EXPECT_EQ(report->noise.size(), 3u);
  EXPECT_EQ(
      order,
      (std::vector<std::string>{
          "t: repeat 1 of 2, local", "t: repeat 1 of 2, local:delay=1ms",
          "t: repeat 2 of 2, local", "t: repeat 2 of 2, local:delay=1ms"}));
  const BackendSummary slow = Summarize(report->backends[1]);
  EXPECT_GE(slow.p50_us, 1000);
}

TEST_F(LocalReplayTest, AWrongPageFailsTheExperiment) {
  const auto trace = Synthesize(
      {.patterns = *ParsePatterns("uniform"), .pages = PageCount(8)});
  ExperimentOptions options;
  options.backends = *ParseBackends("local");
  options.lost_page = PageIndex(7);
  const auto report = RunExperiment(*trace, options);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(absl::StrContains(report.status().message(), "page 7"));
}

TEST(MachineTest, PlacementsHaveNames) {
  EXPECT_EQ(*ParsePlacement("one"), Placement::kOne);
  EXPECT_EQ(*ParsePlacement("free"), Placement::kFree);
  EXPECT_EQ(*ParsePlacement("spread"), Placement::kSpread);
  EXPECT_FALSE(ParsePlacement("two").ok());
}

TEST(MachineTest, NoiseIsMeasuredForAsLongAsAsked) {
  const int64_t begin_ns = Clock::Monotonic()->NowNanos();
  const Noise noise = MeasureNoise(5 * kNanosPerMilli);
  EXPECT_GE(Clock::Monotonic()->NowNanos() - begin_ns, 5 * kNanosPerMilli);
  EXPECT_GT(noise.longest_gap_ns, 0);
  EXPECT_GE(noise.lost, 0);
  EXPECT_LE(noise.lost, 1);
}

}  // namespace
}  // namespace postcopy
