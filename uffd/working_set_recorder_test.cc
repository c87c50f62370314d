#include "uffd/working_set_recorder.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

TEST(WorkingSetRecorderTest, KeepsTheOrderAndJoinsNeighbours) {
  WorkingSetRecorder recorder;
  EXPECT_TRUE(recorder.runs().empty());
  for (const PageRun unit :
       {Pages(100, 1), Pages(101, 1), Pages(7, 1), Pages(6, 1), Pages(5, 1),
        Pages(100, 1), Pages(512, 512), Pages(1024, 512)}) {
    recorder.OnFault(unit);
  }
  EXPECT_EQ(recorder.runs(),
            (std::vector<PageRun>{Pages(100, 2), Pages(5, 3), Pages(100, 1),
                                  Pages(512, 1024)}));
}

TEST(WorkingSetRecorderTest, AsksForNothing) {
  const auto state = *PageState::Create(PageCount(100));
  WorkingSetRecorder recorder;
  recorder.OnFault(Pages(1, 1));
  EXPECT_EQ(recorder.NextRun(*state, {}, PageCount(64)), std::nullopt);
}

TEST(WorkingSetRecorderTest, TakesSoManyRunsAndNotOneMore) {
  WorkingSetRecorder recorder;
  for (uint64_t i = 0; i < kWorkingSetRunsMax + 1; ++i) {
    recorder.OnFault(Pages(2 * i, 1));
  }
  ASSERT_EQ(recorder.runs().size(), kWorkingSetRunsMax);
  EXPECT_EQ(recorder.runs().back(), Pages(2 * (kWorkingSetRunsMax - 1), 1));
  // The last one may still grow.
  recorder.OnFault(Pages(2 * kWorkingSetRunsMax - 1, 1));
  EXPECT_EQ(recorder.runs().back(), Pages(2 * (kWorkingSetRunsMax - 1), 2));
}

}  // namespace
}  // namespace postcopy
