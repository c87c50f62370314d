#include "uffd/pull_order_simulation.h"

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/policy_pull_order.h"

namespace postcopy {
namespace {

constexpr uint64_t kSeeds[] = {1, 2, 3};

// What linear costs is the measure; counts, so the same on every machine.
class PullOrderSimulationTest : public testing::TestWithParam<uint64_t> {
 protected:
  uint64_t Faults(PullOrderKind kind, const std::string& name) {
    for (const GuestTrace& trace : GuestTraces(GetParam())) {
      if (trace.name != name) continue;
      const SimulatedPull pull = SimulatePull(kind, trace);
      EXPECT_EQ(pull.asked_again, 0u) << name;
      return pull.faults;
    }
    ADD_FAILURE() << "no trace " << name;
    return 0;
  }
  uint64_t Linear(const std::string& name) {
    return Faults(PullOrderKind::kLinear, name);
  }
  uint64_t Adaptive(const std::string& name) {
    return Faults(PullOrderKind::kAdaptive, name);
  }
};

TEST_P(PullOrderSimulationTest, AGuestThatReadsInOrderSeldomFaults) {
  EXPECT_LT(Adaptive("sequential"), 40u);
  EXPECT_LT(Adaptive("backward"), 60u);
}

TEST_P(PullOrderSimulationTest, SeveralStreamsFaultAtMostHalfAsOften) {
  EXPECT_LT(2 * Adaptive("8 streams"), Linear("8 streams"));
  const std::string sparse = "8 streams, a page of 10 missing";
  EXPECT_LT(2 * Adaptive(sparse), Linear(sparse));
  EXPECT_LT(Adaptive("24 streams"), Linear("24 streams"));
  EXPECT_LT(Adaptive("4 streams, 4 random"), Linear("4 streams, 4 random"));
}

TEST_P(PullOrderSimulationTest, AStrideIsNotWorseThanInOrder) {
  EXPECT_LT(Adaptive("stride of 8"), Linear("stride of 8"));
  EXPECT_LT(Adaptive("stride of 1000"),
            Linear("stride of 1000") + Linear("stride of 1000") / 20);
}

TEST_P(PullOrderSimulationTest, AtRandomNothingIsLost) {
  EXPECT_LT(Adaptive("random"), Linear("random") + Linear("random") / 20);
}

TEST_P(PullOrderSimulationTest, WhatTheSourceTellsIsWorthItsPages) {
  const std::string told = "hot pages, dirtied told";
  EXPECT_LT(2 * Adaptive(told), Adaptive("hot pages"));
  EXPECT_LT(2 * Faults(PullOrderKind::kRecentlyDirtied, told), Linear(told));
}

TEST_P(PullOrderSimulationTest, ARecordedStartHardlyFaults) {
  EXPECT_LT(Adaptive("a start, recorded"), Linear("a start, recorded") / 20);
}

TEST_P(PullOrderSimulationTest, WrongHintsCostLittle) {
  for (const char* name :
       {"sequential, wrong working set", "sequential, wrong dirtied"}) {
    EXPECT_LT(4 * Adaptive(name), Linear(name)) << name;
  }
}

// Each order brings all of it, and hardly later than linear does: a request
// for few pages must not leave the wire idle.
TEST_P(PullOrderSimulationTest, NoOrderMakesTheWholeMuchSlower) {
  for (const GuestTrace& trace : GuestTraces(GetParam())) {
    const int64_t linear =
        SimulatePull(PullOrderKind::kLinear, trace).complete_us;
    const SimulatedPull adaptive =
        SimulatePull(PullOrderKind::kAdaptive, trace);
    EXPECT_EQ(adaptive.asked_again, 0u) << trace.name;
    EXPECT_LT(adaptive.complete_us, linear + linear / 4) << trace.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, PullOrderSimulationTest,
                         testing::ValuesIn(kSeeds));

}  // namespace
}  // namespace postcopy
