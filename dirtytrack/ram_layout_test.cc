#include "dirtytrack/ram_layout.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr uint64_t kMiB = uint64_t{1} << 20;

Region MakeRegion(const std::string& name, uint64_t start, uint64_t length) {
  return {name, RamOffset(start), ByteCount(length), ByteCount(kPageSize)};
}

Slot MakeSlot(uint16_t slot, uint64_t address, uint64_t start,
              uint64_t length) {
  return {{0, slot}, address, RamOffset(start), ByteCount(length)};
}

RamLayout MakeLayout(std::vector<Region> regions) {
  absl::StatusOr<RamLayout> layout = RamLayout::Create(std::move(regions));
  EXPECT_TRUE(layout.ok()) << layout.status();
  return *std::move(layout);
}

// Three regions of 1, 2 and 1 MiB.
RamLayout ThreeRegions() {
  return MakeLayout({MakeRegion("low", 0, kMiB),
                     MakeRegion("high", kMiB, 2 * kMiB),
                     MakeRegion("rom", 3 * kMiB, kMiB)});
}

void ExpectRefused(std::vector<Region> regions, absl::string_view message) {
  const absl::Status status = RamLayout::Create(std::move(regions)).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), message);
}

TEST(RamLayoutTest, AddsRegionsUp) {
  const RamLayout layout = ThreeRegions();
  EXPECT_EQ(layout.regions().size(), 3u);
  EXPECT_EQ(layout.bytes(), ByteCount(4 * kMiB));
  EXPECT_EQ(layout.pages(), PageCount(1024));
}

TEST(RamLayoutTest, NumberOfRegions) {
  ExpectRefused({}, "a VM has 1 to 64 regions of RAM, not 0");
  std::vector<Region> regions;
  for (size_t i = 0; i < kMaxRegions; ++i) {
    regions.push_back(MakeRegion(absl::StrCat("r", i), i * kMiB, kMiB));
  }
  EXPECT_TRUE(RamLayout::Create(regions).ok());
  regions.push_back(MakeRegion("more", kMaxRegions * kMiB, kMiB));
  ExpectRefused(regions, "a VM has 1 to 64 regions of RAM, not 65");
}

TEST(RamLayoutTest, Names) {
  EXPECT_TRUE(IsValidName("a"));
  EXPECT_TRUE(IsValidName("pc.ram_0-A"));
  EXPECT_TRUE(IsValidName(std::string(kMaxNameBytes, 'x')));
  EXPECT_FALSE(IsValidName(""));
  EXPECT_FALSE(IsValidName(std::string(kMaxNameBytes + 1, 'x')));
  for (const char* name : {"a b", "a/b", "a\n", "\xc3\xa4", "\""}) {
    EXPECT_FALSE(IsValidName(name)) << name;
    ExpectRefused({MakeRegion(name, 0, kMiB)},
                  "the region at RAM offset 0x0 has an unusable name; use 1 to "
                  "128 of the characters A-Z a-z 0-9 . _ -");
  }
  ExpectRefused({MakeRegion("a", 0, kMiB), MakeRegion("a", kMiB, kMiB)},
                "two regions are called \"a\"; rename one");
}

TEST(RamLayoutTest, PageSize) {
  Region region = MakeRegion("a", 0, 2 * kMiB);
  region.page_size = ByteCount(2 * kMiB);
  ExpectRefused({region},
                "region \"a\" has pages of 2MiB; only 4KiB is supported");
  EXPECT_TRUE(RamLayout::Create({region}, RegionPages::kSmallOrHuge).ok());
}

TEST(RamLayoutTest, HugePages) {
  const auto error = [](const Region& region) {
    return std::string(RamLayout::Create({region}, RegionPages::kSmallOrHuge)
                           .status()
                           .message());
  };
  Region region = MakeRegion("a", 0, 3 * kMiB);
  region.page_size = kHugePageSize;
  EXPECT_EQ(error(region),
            "region \"a\" has a length of 3MiB; make it a positive multiple of "
            "2MiB");
  region.page_size = ByteCount(1024 * kMiB);
  EXPECT_EQ(error(region),
            "region \"a\" has pages of 1GiB; only 4KiB and 2MiB are supported");
}

TEST(RamLayoutTest, Length) {
  EXPECT_TRUE(RamLayout::Create({MakeRegion("a", 0, kPageSize)}).ok());
  ExpectRefused({MakeRegion("a", 0, 0)},
                "region \"a\" has a length of 0; make it a positive multiple "
                "of 4KiB");
  ExpectRefused({MakeRegion("a", 0, 4097)},
                "region \"a\" has a length of 4097; make it a positive "
                "multiple of 4KiB");
}

TEST(RamLayoutTest, RegionsLieEndToEnd) {
  ExpectRefused({MakeRegion("a", kPageSize, kMiB)},
                "region \"a\" starts at RAM offset 0x1000; regions lie end to "
                "end from 0, so it has to start at RAM offset 0x0");
  // A gap, an overlap.
  for (uint64_t start : {kMiB + kPageSize, kMiB - kPageSize}) {
    ExpectRefused(
        {MakeRegion("a", 0, kMiB), MakeRegion("b", start, kMiB)},
        absl::StrCat("region \"b\" starts at RAM offset 0x", absl::Hex(start),
                     "; regions lie end to end from 0, so it has to "
                     "start at RAM offset 0x100000"));
  }
}

TEST(RamLayoutTest, TotalSize) {
  const uint64_t max = kMaxRamBytes.value();
  EXPECT_EQ(MakeLayout({MakeRegion("a", 0, max)}).bytes(), kMaxRamBytes);
  EXPECT_EQ(
      MakeLayout({MakeRegion("a", 0, kMiB), MakeRegion("b", kMiB, max - kMiB)})
          .bytes(),
      kMaxRamBytes);
  constexpr char kTooMuch[] =
      "region \"b\" takes the VM beyond 16TiB of RAM, the most supported";
  ExpectRefused({MakeRegion("b", 0, max + kPageSize)}, kTooMuch);
  ExpectRefused(
      {MakeRegion("a", 0, kMiB), MakeRegion("b", kMiB, max - kMiB + kPageSize)},
      kTooMuch);
  // Its end would overflow.
  ExpectRefused({MakeRegion("a", 0, kMiB),
                 MakeRegion("b", kMiB, UINT64_MAX - kPageSize + 1)},
                kTooMuch);
}

TEST(RamLayoutTest, CheckTakesWhatLiesInside) {
  const RamLayout layout = ThreeRegions();
  EXPECT_TRUE(layout.Check(PageIndex(0), PageCount(1024)).ok());
  EXPECT_TRUE(layout.Check(PageIndex(1023), PageCount(1)).ok());
}

TEST(RamLayoutTest, CheckRefusesTheRest) {
  const RamLayout layout = ThreeRegions();
  struct Case {
    uint64_t first;
    uint64_t count;
    const char* message;
  };
  const Case kCases[] = {
      {0, 1025,
       "pages [0x0, 0x401) is not inside the VM's RAM, which has 1024 pages"},
      {1024, 1,
       "pages [0x400, 0x401) is not inside the VM's RAM, which has 1024 "
       "pages"},
      {1, UINT64_MAX,
       "pages [0x1, 0x1 + 0xffffffffffffffff) is not inside the VM's RAM, "
       "which has 1024 pages"},
      {UINT64_MAX, 1,
       "pages [0xffffffffffffffff, 0xffffffffffffffff + 0x1) is not inside "
       "the VM's RAM, which has 1024 pages"},
  };
  for (const Case& c : kCases) {
    const absl::Status status =
        layout.Check(PageIndex(c.first), PageCount(c.count));
    EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
    EXPECT_EQ(status.message(), c.message);
  }
  EXPECT_EQ(layout.Check(PageIndex(3), PageCount(0)).message(),
            "pages [0x3, 0x3) is empty; ask for at least one page");
}

TEST(RamLayoutTest, RegionOf) {
  const RamLayout layout = ThreeRegions();
  EXPECT_EQ(layout.RegionOf(PageIndex(0)), 0u);
  EXPECT_EQ(layout.RegionOf(PageIndex(255)), 0u);
  EXPECT_EQ(layout.RegionOf(PageIndex(256)), 1u);
  EXPECT_EQ(layout.RegionOf(PageIndex(767)), 1u);
  EXPECT_EQ(layout.RegionOf(PageIndex(768)), 2u);
  EXPECT_EQ(layout.RegionOf(PageIndex(1023)), 2u);
  EXPECT_DEATH(layout.RegionOf(PageIndex(1024)), "check failed");
}

TEST(RamLayoutTest, Matches) {
  const RamLayout source = ThreeRegions();
  EXPECT_TRUE(source.Matches(ThreeRegions()).ok());

  const auto message = [&](const RamLayout& destination) {
    const absl::Status status = source.Matches(destination);
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  EXPECT_EQ(message(MakeLayout({MakeRegion("ram", 0, kMiB)})),
            "the VM's RAM is laid out differently: the name of region 0 is "
            "\"low\" at the source and \"ram\" at the destination; configure "
            "both alike");
  EXPECT_EQ(message(MakeLayout(
                {MakeRegion("low", 0, kMiB), MakeRegion("high", kMiB, kMiB)})),
            "the VM's RAM is laid out differently: the length of region 1 is "
            "2MiB at the source and 1MiB at the destination; configure both "
            "alike");
  EXPECT_EQ(message(MakeLayout({MakeRegion("low", 0, kMiB)})),
            "the VM's RAM is laid out differently: 3 regions at the source "
            "and 1 at the destination; configure both alike");
}

void ExpectSlotsRefused(absl::Span<const Slot> slots,
                        absl::string_view message) {
  const absl::Status status = CheckSlots(ThreeRegions(), slots);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), message);
}

TEST(CheckSlotsTest, TakesGoodOnes) {
  const RamLayout layout = ThreeRegions();
  EXPECT_TRUE(CheckSlots(layout, {}).ok());
  // A hole in guest-physical addresses, RAM shown twice, and the same
  // addresses in another address space.
  Slot smm = MakeSlot(0, 0, 0, kMiB);
  smm.id.address_space = 1;
  EXPECT_TRUE(CheckSlots(layout, {MakeSlot(0, 0, 0, kMiB),
                                  MakeSlot(1, kMiB, kMiB, 3 * kMiB),
                                  MakeSlot(2, uint64_t{1} << 32, 0, kMiB), smm})
                  .ok());
}

TEST(CheckSlotsTest, Number) {
  std::vector<Slot> slots;
  for (uint16_t i = 0; i < kMaxSlots; ++i) {
    slots.push_back(MakeSlot(i, i * kMiB, 0, kMiB));
  }
  EXPECT_TRUE(CheckSlots(ThreeRegions(), slots).ok());
  slots.push_back(MakeSlot(kMaxSlots, kMaxSlots * kMiB, 0, kMiB));
  ExpectSlotsRefused(slots, "a VM has at most 512 slots, not 513");
}

TEST(CheckSlotsTest, UniqueIds) {
  ExpectSlotsRefused({MakeSlot(7, 0, 0, kMiB), MakeSlot(7, kMiB, 0, kMiB)},
                     "slot 0:7 is listed twice");
}

TEST(CheckSlotsTest, Alignment) {
  constexpr char kRule[] =
      "; both have to be multiples of 4KiB, the length "
      "not 0";
  ExpectSlotsRefused(
      {MakeSlot(1, 0, 1, kMiB)},
      absl::StrCat("slot 0:1 has 1MiB at RAM offset 0x1", kRule));
  ExpectSlotsRefused({MakeSlot(1, 0, 0, 5)},
                     absl::StrCat("slot 0:1 has 5 at RAM offset 0x0", kRule));
  ExpectSlotsRefused({MakeSlot(1, 0, 0, 0)},
                     absl::StrCat("slot 0:1 has 0 at RAM offset 0x0", kRule));
}

TEST(CheckSlotsTest, InsideRam) {
  EXPECT_TRUE(CheckSlots(ThreeRegions(), {MakeSlot(0, 0, 0, 4 * kMiB)}).ok());
  ExpectSlotsRefused(
      {MakeSlot(0, 0, kPageSize, 4 * kMiB)},
      "slot 0:0 shows 4MiB at RAM offset 0x1000, more than the VM's RAM of "
      "4MiB");
  ExpectSlotsRefused(
      {MakeSlot(0, 0, kMiB, UINT64_MAX - kPageSize + 1)},
      "slot 0:0 shows 18014398509481980KiB at RAM offset 0x100000, more than "
      "the VM's RAM of 4MiB");
}

TEST(CheckSlotsTest, GuestPhysicalAddressesDoNotWrap) {
  // The last byte of the address space is still usable.
  EXPECT_TRUE(CheckSlots(ThreeRegions(), {MakeSlot(0, -kMiB, 0, kMiB)}).ok());
  ExpectSlotsRefused({MakeSlot(0, -kMiB + kPageSize, 0, kMiB)},
                     "slot 0:0 wraps around the guest-physical address space: "
                     "1MiB at 0xfffffffffff01000");
}

TEST(CheckSlotsTest, GuestPhysicalAddressesDoNotOverlap) {
  ExpectSlotsRefused(
      {MakeSlot(1, 2 * kMiB, 0, kMiB), MakeSlot(0, kMiB, 0, kMiB + kPageSize)},
      "slot 0:0 and slot 0:1 overlap at guest-physical address 0x200000");
  // One within another, with the last address in use.
  ExpectSlotsRefused(
      {MakeSlot(0, -2 * kMiB, 0, 2 * kMiB), MakeSlot(1, -kMiB, 0, kMiB)},
      "slot 0:0 and slot 0:1 overlap at guest-physical address "
      "0xfffffffffff00000");
}

TEST(CoverRamTest, CoversEachPageOnce) {
  const RamLayout layout = ThreeRegions();
  const uint64_t end = layout.bytes().value();
  const absl::StatusOr<std::vector<SlotCover>> covers =
      CoverRam(layout, {MakeSlot(2, 1024 * kMiB, kMiB, end - kMiB),
                        MakeSlot(1, 0, 0, 2 * kMiB),
                        MakeSlot(3, 8192 * kMiB, kMiB, kMiB)});
  ASSERT_TRUE(covers.ok()) << covers.status();
  ASSERT_EQ(covers->size(), 2u);
  EXPECT_EQ((*covers)[0].slot, (SlotId{0, 1}));
  EXPECT_EQ((*covers)[0].ram, (PageRun{PageIndex(0), PageCount(512)}));
  EXPECT_EQ((*covers)[0].first_in_slot, PageIndex(0));
  EXPECT_EQ((*covers)[1].slot, (SlotId{0, 2}));
  EXPECT_EQ((*covers)[1].ram.first, PageIndex(512));
  EXPECT_EQ((*covers)[1].ram.end().value(), layout.pages().value());
  EXPECT_EQ((*covers)[1].first_in_slot, PageIndex(256));
}

TEST(CoverRamTest, NamesThePageThatNoSlotShows) {
  const absl::Status status =
      CoverRam(ThreeRegions(), {MakeSlot(0, 0, 0, kMiB),
                                MakeSlot(1, 1024 * kMiB, 2 * kMiB, kMiB)})
          .status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("no slot shows the page at RAM offset "
                                  "0x100000,"),
            absl::string_view::npos)
      << status;
}

}  // namespace
}  // namespace postcopy
