#include "cmd/demovm/guest_ram.h"

#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "gtest/gtest.h"

namespace postcopy::demovm {
namespace {

constexpr uint64_t kMebibyte = 1 << 20;

TEST(GuestRamTest, SmallRamIsOneBlock) {
  absl::StatusOr<GuestRam> ram = GuestRam::Create(ByteCount(4 * kMebibyte));
  ASSERT_TRUE(ram.ok()) << ram.status();
  ASSERT_EQ(ram->blocks().size(), 1u);
  EXPECT_EQ(ram->blocks()[0].region.name, "ram-low");
  EXPECT_EQ(ram->blocks()[0].host, ram->guest_physical_zero());
}

TEST(GuestRamTest, WhatIsAboveTheHoleGoesOnAtFourGibibytes) {
  const ByteCount bytes = kLowRamMax + ByteCount(2 * kMebibyte);
  absl::StatusOr<GuestRam> ram = GuestRam::Create(bytes);
  ASSERT_TRUE(ram.ok()) << ram.status();
  ASSERT_EQ(ram->blocks().size(), 2u);
  const RamBlock& high = ram->blocks()[1];
  EXPECT_EQ(high.region.name, "ram-high");
  EXPECT_EQ(high.region.start, RamOffset(0) + kLowRamMax);
  EXPECT_EQ(high.slot.guest_physical_address, kHighRamStart);
  EXPECT_EQ(high.slot.id, (SlotId{.address_space = 0, .slot = 1}));
  EXPECT_EQ(high.host, ram->guest_physical_zero() + kHighRamStart);
  EXPECT_EQ(ram->PageAddress(PageIndex(kLowRamMax.value() / kPageSize)),
            high.host);
}

TEST(GuestRamTest, BlocksMakeALayout) {
  absl::StatusOr<GuestRam> ram =
      GuestRam::Create(ByteCount(6 * kMebibyte), ByteCount(4 * kMebibyte));
  ASSERT_TRUE(ram.ok()) << ram.status();
  absl::StatusOr<RamLayout> layout = RamLayout::Create(ram->regions());
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->bytes(), ram->bytes());
  EXPECT_TRUE(CheckSlots(*layout, ram->slots()).ok());
}

TEST(GuestRamTest, TheFileIsTheMemoryAndKeepsItsSize) {
  absl::StatusOr<GuestRam> created = GuestRam::Create(ByteCount(2 * kMebibyte));
  ASSERT_TRUE(created.ok()) << created.status();
  GuestRam ram = *std::move(created);
  const RamBlock& block = ram.blocks()[0];
  EXPECT_LT(lseek(block.memfd.get(), 0, SEEK_DATA), 0) << "nothing touched";
  block.host[kPageSize] = 42;
  uint8_t byte = 0;
  ASSERT_EQ(pread(block.memfd.get(), &byte, 1, kPageSize), 1);
  EXPECT_EQ(byte, 42);
  EXPECT_NE(ftruncate(block.memfd.get(), 0), 0);
  EXPECT_NE(ftruncate(block.memfd.get(), 4 * kMebibyte), 0);
}

TEST(GuestRamTest, RefusesSizesItCannotMap) {
  for (const uint64_t bytes :
       {uint64_t{0}, uint64_t{4096}, 3 * kMebibyte,
        kGuestRamMax.value() + 2 * kMebibyte, UINT64_MAX}) {
    EXPECT_EQ(GuestRam::Create(ByteCount(bytes)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bytes;
  }
}

}  // namespace
}  // namespace postcopy::demovm
