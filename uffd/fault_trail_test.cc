#include "uffd/fault_trail.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "dirtytrack/ram_layout.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

std::vector<PageRun> ReadAll(FaultTrail& trail) {
  std::vector<PageRun> read;
  trail.Read([&](PageRun unit) { read.push_back(unit); });
  return read;
}

TEST(FaultTrailTest, TellsEachFaultOnceInOrder) {
  FaultTrail trail;
  EXPECT_TRUE(ReadAll(trail).empty());
  constexpr uint64_t kLast = kMaxRamBytes.value() / kPageSize - 1;
  const std::vector<PageRun> faults = {Pages(7, 1), Pages(512, 512),
                                       Pages(0, 1), Pages(kLast, 1)};
  for (const PageRun& fault : faults) trail.Add(fault);
  EXPECT_EQ(ReadAll(trail), faults);
  EXPECT_TRUE(ReadAll(trail).empty());
}

TEST(FaultTrailTest, KeepsTheNewestOfMoreThanItHolds) {
  FaultTrail trail;
  for (uint64_t i = 0; i < FaultTrail::kLength; ++i) trail.Add(Pages(i, 1));
  EXPECT_EQ(ReadAll(trail).size(), FaultTrail::kLength);
  for (uint64_t i = 0; i <= FaultTrail::kLength; ++i) trail.Add(Pages(i, 1));
  const std::vector<PageRun> read = ReadAll(trail);
  ASSERT_EQ(read.size(), FaultTrail::kLength);
  EXPECT_EQ(read.front(), Pages(1, 1));
  EXPECT_EQ(read.back(), Pages(FaultTrail::kLength, 1));
}

TEST(FaultTrailTest, AWriterIsReadWhileItWrites) {
  constexpr uint64_t kFaults = 200000;
  FaultTrail trail;
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (uint64_t i = 1; i <= kFaults; ++i) trail.Add(Pages(i, 1));
    done.store(true);
  });
  uint64_t newest = 0;
  while (true) {
    const bool last = done.load();
    trail.Read([&](PageRun unit) {
      ASSERT_EQ(unit.count, PageCount(1));
      ASSERT_LE(unit.first.value(), kFaults);
      newest = std::max(newest, unit.first.value());
    });
    if (last) break;
  }
  writer.join();
  EXPECT_EQ(newest, kFaults);
}

}  // namespace
}  // namespace postcopy
