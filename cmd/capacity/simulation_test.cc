#include "cmd/capacity/simulation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "cmd/capacity/capacity_report.h"
#include "cmd/capacity/fair_shares.h"

namespace postcopy::capacity {
namespace {

constexpr double kMib = 1u << 20;
constexpr double kGib = 1u << 30;

// A VM that writes nothing, over a link of 1 GiB/s, with nothing in its way.
Scenario Idle() {
  Scenario s;
  s.vm = {.ram_bytes = 4 * kGib,
          .zero_fraction = 0.5,
          .hot_bytes = kGib,
          .hot_write_bytes_per_s = 0,
          .cold_write_bytes_per_s = 0};
  s.host.link_bytes_per_s = kGib;
  s.costs.link_fraction = 1;
  s.costs.stream_bytes_per_s_max = 100 * kGib;
  s.costs.source_cpu_s_per_gib = 0;
  s.costs.destination_cpu_s_per_gib = 0;
  return s;
}

Outcome Moved(const Scenario& scenario) {
  const auto outcome = Simulate(scenario);
  EXPECT_TRUE(outcome.ok()) << outcome.status();
  return *outcome;
}

TEST(FairSharesTest, WhoWantsLessLeavesTheRestToOthers) {
  const std::vector<double> rates =
      FairShares({{1, {0}}, {10, {0}}, {10, {0}}}, {11});
  EXPECT_DOUBLE_EQ(rates[0], 1);
  EXPECT_DOUBLE_EQ(rates[1], 5);
  EXPECT_DOUBLE_EQ(rates[2], 5);
}

// The second is held back by a link of its own; the first gets what it leaves.
TEST(FairSharesTest, ABottleneckElsewhereFreesTheSharedLink) {
  const std::vector<double> rates =
      FairShares({{100, {0}}, {100, {0, 1}}}, {10, 2});
  EXPECT_DOUBLE_EQ(rates[0], 8);
  EXPECT_DOUBLE_EQ(rates[1], 2);
}

TEST(FairSharesTest, NobodyIsBoundByWhatHasNoEnd) {
  const double infinite = std::numeric_limits<double>::infinity();
  EXPECT_EQ(FairShares({{7, {0}}, {0, {0}}}, {infinite}),
            (std::vector<double>{7, 0}));
  EXPECT_TRUE(FairShares({}, {1}).empty());
}

TEST(SimulationTest, AnIdleVmIsSentOnceAtTheSpeedOfTheLink) {
  const Outcome outcome = Moved(Idle());
  ASSERT_EQ(outcome.vms.size(), 1u);
  const VmOutcome& vm = outcome.vms[0];
  EXPECT_NEAR(vm.precopy_bytes, 2 * kGib, 1);
  EXPECT_EQ(vm.stale_bytes, 0);
  EXPECT_EQ(vm.rounds, 2u) << "one, and the one that is cut short";
  EXPECT_NEAR(outcome.seconds, 2 + 0.1 + 5e-3, 1e-6);
  EXPECT_NEAR(vm.downtime_s, 5e-3, 1e-9);
}

TEST(SimulationTest, VmsShareALinkAndWaitForTheirTurn) {
  Scenario s = Idle();
  s.vms = 4;
  s.host.migrations_max = 2;
  const Outcome outcome = Moved(s);
  EXPECT_EQ(outcome.vms.size(), 4u);
  EXPECT_NEAR(outcome.seconds, 2 * (4 + 0.105), 1e-3);
  EXPECT_GT(outcome.source_link, 0.97);
  EXPECT_TRUE(absl::StrContains(BottleneckOf(outcome), "link"));
}

// The daemon's own advice ends it: a VM that writes faster than the link never
// converges, and its hot set is stale.
TEST(SimulationTest, AVmThatWritesFasterThanTheLinkIsSwitchedOver) {
  Scenario s = Idle();
  s.vm.hot_write_bytes_per_s = 4 * kGib;
  const Outcome outcome = Moved(s);
  const VmOutcome& vm = outcome.vms[0];
  EXPECT_GE(vm.rounds, 4u);
  EXPECT_LE(vm.rounds, 6u);
  EXPECT_NEAR(vm.stale_bytes, kGib, 0.1 * kGib);
  EXPECT_GT(vm.faulted_bytes, 0);
  EXPECT_LT(vm.faulted_bytes, vm.stale_bytes);
}

TEST(SimulationTest, OneThatWritesLittleConverges) {
  Scenario s = Idle();
  s.vm.hot_write_bytes_per_s = 50 * kMib;
  const VmOutcome vm = Moved(s).vms[0];
  EXPECT_LT(vm.stale_bytes, 60 * kMib) << "50 ms of the link";
}

TEST(SimulationTest, CpuIsABottleneckLikeALink) {
  Scenario s = Idle();
  s.host.service_cpus = 1;
  s.costs.destination_cpu_s_per_gib = 4;
  const Outcome outcome = Moved(s);
  EXPECT_NEAR(outcome.seconds, 8 + 0.105, 1e-3);
  EXPECT_EQ(BottleneckOf(outcome), "destination CPU");
}

TEST(SimulationTest, ALimitHoldsForEachMigration) {
  Scenario s = Idle();
  s.vms = 2;
  s.vm.bulk_limit_bytes_per_s = 0.25 * kGib;
  EXPECT_NEAR(Moved(s).seconds, 8 + 0.105, 1e-3);
  s.costs.wire_fraction = 0.5;
  EXPECT_NEAR(Moved(s).seconds, 4 + 0.105, 1e-3) << "of what is on the wire";
}

TEST(SimulationTest, AnUplinkIsSharedByAllSources) {
  Scenario s = Idle();
  s.vms = 8;
  s.source_hosts = 4;
  s.destination_hosts = 4;
  EXPECT_NEAR(Moved(s).seconds, 4 + 0.105, 1e-3);
  s.uplink_bytes_per_s = 2 * kGib;
  const Outcome outcome = Moved(s);
  EXPECT_NEAR(outcome.seconds, 8 + 0.105, 1e-3);
  EXPECT_EQ(BottleneckOf(outcome), "uplink");
}

TEST(SimulationTest, TheSameSeedIsTheSameFleet) {
  Scenario s = Idle();
  s.vms = 50;
  s.vm.spread = 0.5;
  const Outcome one = Moved(s);
  const Outcome two = Moved(s);
  EXPECT_EQ(OutcomeJson(s, one), OutcomeJson(s, two));
  s.seed = 2;
  EXPECT_NE(Moved(s).seconds, one.seconds);
}

TEST(SimulationTest, NothingIsLostOnTheWay) {
  Scenario s;
  s.vms = 200;
  s.source_hosts = 7;
  s.destination_hosts = 5;
  s.vm.spread = 0.9;
  const Outcome outcome = Moved(s);
  ASSERT_EQ(outcome.vms.size(), 200u);
  double last = 0;
  for (const VmOutcome& vm : outcome.vms) {
    EXPECT_LE(vm.started_s, vm.switched_s);
    EXPECT_LE(vm.switched_s, vm.ended_s);
    EXPECT_GE(vm.ended_s, last);
    EXPECT_GE(vm.faulted_bytes, 0);
    EXPECT_LE(vm.faulted_bytes, vm.stale_bytes + 1);
    last = vm.ended_s;
  }
  for (const double busy : {outcome.source_link, outcome.destination_link,
                            outcome.source_cpu, outcome.destination_cpu}) {
    EXPECT_GT(busy, 0);
    EXPECT_LE(busy, 1 + 1e-9);
  }
}

TEST(ScenarioTest, LimitsAndOnePast) {
  Scenario s;
  s.vms = kVmsMax;
  s.source_hosts = kHostsMax;
  EXPECT_TRUE(CheckScenario(s).ok());
  s.vms = kVmsMax + 1;
  EXPECT_EQ(CheckScenario(s).message(), "vms must be 1 to 10000, not 10001");
  s = {};
  s.destination_hosts = kHostsMax + 1;
  EXPECT_FALSE(CheckScenario(s).ok());
  s.destination_hosts = 0;
  EXPECT_FALSE(CheckScenario(s).ok());
}

TEST(ScenarioTest, WhatMakesNoSenseIsRefused) {
  const auto refused = [](auto change) {
    Scenario s;
    change(s);
    return absl::IsInvalidArgument(Simulate(s).status());
  };
  EXPECT_TRUE(refused([](Scenario& s) { s.vm.ram_bytes = 0; }));
  EXPECT_TRUE(refused([](Scenario& s) { s.vm.ram_bytes = std::nan(""); }));
  EXPECT_TRUE(
      refused([](Scenario& s) { s.vm.hot_bytes = s.vm.ram_bytes + 1; }));
  EXPECT_TRUE(refused([](Scenario& s) { s.vm.hot_write_bytes_per_s = -1; }));
  EXPECT_TRUE(refused([](Scenario& s) { s.vm.zero_fraction = 1.1; }));
  EXPECT_TRUE(refused([](Scenario& s) { s.vm.spread = 1; }));
  EXPECT_TRUE(refused([](Scenario& s) { s.host.link_bytes_per_s = 0; }));
  EXPECT_TRUE(refused([](Scenario& s) { s.host.migrations_max = 0; }));
}

TEST(CapacityReportTest, SaysTheSameInBothFormats) {
  const Scenario s = Idle();
  const Outcome outcome = Moved(s);
  EXPECT_TRUE(
      absl::StrContains(OutcomeTable(s, outcome), "time             2.1 s"))
      << OutcomeTable(s, outcome);
  EXPECT_TRUE(absl::StrContains(OutcomeJson(s, outcome), R"("seconds":2.105,)"))
      << OutcomeJson(s, outcome);
}

}  // namespace
}  // namespace postcopy::capacity
