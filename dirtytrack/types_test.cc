#include "dirtytrack/types.h"

#include <sstream>
#include <type_traits>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr ByteCount kKiB{uint64_t{1} << 10};
constexpr ByteCount kMiB{uint64_t{1} << 20};
constexpr ByteCount kGiB{uint64_t{1} << 30};
constexpr ByteCount kTiB{uint64_t{1} << 40};

// What the types are for: none of these may compile by accident.
static_assert(!std::is_convertible_v<uint64_t, PageIndex>);
static_assert(!std::is_convertible_v<PageIndex, RamOffset>);
static_assert(!std::is_constructible_v<RamOffset, PageIndex>);
static_assert(!std::is_constructible_v<PageCount, ByteCount>);
static_assert(!std::is_invocable_v<std::plus<>, PageIndex, PageIndex>);
static_assert(!std::is_invocable_v<std::plus<>, PageIndex, ByteCount>);
static_assert(!std::is_invocable_v<std::plus<>, RamOffset, PageCount>);
static_assert(!std::is_invocable_v<std::minus<>, PageCount, PageIndex>);
static_assert(!std::is_invocable_v<std::less<>, PageIndex, PageCount>);

TEST(TypesTest, ArithmeticKeepsTheUnits) {
  PageIndex page(3);
  page += PageCount(4);
  EXPECT_EQ(page, PageIndex(7));
  EXPECT_EQ(page - PageIndex(2), PageCount(5));
  EXPECT_EQ(page - PageCount(2), PageIndex(5));
  PageCount count = PageCount(4) + PageCount(5) - PageCount(2);
  count -= PageCount(7);
  EXPECT_TRUE(count.empty());
  count += PageCount(1);
  EXPECT_LT(PageCount(0), count);
}

TEST(TypesTest, Conversions) {
  EXPECT_EQ(PageOf(RamOffset(4095)), PageIndex(0));
  EXPECT_EQ(PageOf(RamOffset(4096)), PageIndex(1));
  EXPECT_EQ(OffsetOf(PageIndex(2)), RamOffset(8192));
  EXPECT_EQ(BytesIn(PageCount(2)), ByteCount(8192));
  EXPECT_EQ(PagesIn(ByteCount(8192)), PageCount(2));
  EXPECT_TRUE(IsPageAligned(RamOffset(8192)));
  EXPECT_FALSE(IsPageAligned(ByteCount(8191)));
  EXPECT_FALSE(IsPageAligned(HostAddress(1)));
}

TEST(TypesTest, LargestValuesStillWork) {
  constexpr uint64_t kMax = UINT64_MAX;
  EXPECT_EQ(PageCount(kMax - 1) + PageCount(1), PageCount(kMax));
  EXPECT_EQ(RamOffset(kMax - 1) + ByteCount(1), RamOffset(kMax));
  EXPECT_EQ(OffsetOf(PageIndex(kMax / kPageSize)),
            RamOffset(kMax / kPageSize * kPageSize));
}

TEST(TypesDeathTest, ArithmeticBeyondTheTypeEndsTheProcess) {
  constexpr uint64_t kMax = UINT64_MAX;
  EXPECT_DEATH(PageCount(kMax) + PageCount(1), "check failed");
  EXPECT_DEATH(PageCount(0) - PageCount(1), "check failed");
  EXPECT_DEATH(RamOffset(kMax) + ByteCount(1), "check failed");
  EXPECT_DEATH(RamOffset(0) - ByteCount(1), "check failed");
  EXPECT_DEATH(HostAddress(0) - HostAddress(1), "check failed");
  EXPECT_DEATH(OffsetOf(PageIndex(kMax / kPageSize + 1)), "check failed");
  EXPECT_DEATH(BytesIn(PageCount(kMax / kPageSize + 1)), "check failed");
  EXPECT_DEATH(PagesIn(ByteCount(4097)), "check failed");
}

TEST(TypesTest, PageRunIsHalfOpen) {
  const PageRun run{PageIndex(4), PageCount(2)};
  EXPECT_EQ(run.end(), PageIndex(6));
  EXPECT_FALSE(run.Contains(PageIndex(3)));
  EXPECT_TRUE(run.Contains(PageIndex(4)));
  EXPECT_TRUE(run.Contains(PageIndex(5)));
  EXPECT_FALSE(run.Contains(PageIndex(6)));
}

TEST(TypesTest, SlotIdsSortByAddressSpaceFirst) {
  EXPECT_LT((SlotId{0, 9}), (SlotId{1, 0}));
  EXPECT_LT((SlotId{1, 0}), (SlotId{1, 1}));
}

TEST(TypesTest, Prints) {
  EXPECT_EQ(ToString(PageCount(0)), "0 pages");
  EXPECT_EQ(ToString(PageCount(1)), "1 page");
  EXPECT_EQ(ToString(PageCount(17)), "17 pages");
  EXPECT_EQ(ToString(PageIndex(17)), "page 0x11");
  EXPECT_EQ(ToString(RamOffset(0x11000)), "RAM offset 0x11000");
  EXPECT_EQ(ToString(HostAddress(0x7f0000000000)),
            "host address 0x7f0000000000");
  EXPECT_EQ(ToString(SlotId{1, 3}), "slot 1:3");
  EXPECT_EQ(ToString(PageRun{PageIndex(16), PageCount(16)}),
            "pages [0x10, 0x20)");
}

TEST(TypesTest, PrintsARunWhoseEndOverflows) {
  EXPECT_EQ(ToString(PageRun{PageIndex(UINT64_MAX), PageCount(2)}),
            "pages [0xffffffffffffffff, 0xffffffffffffffff + 0x2)");
}

TEST(TypesTest, StreamsAsToStringPrints) {
  std::ostringstream out;
  out << ByteCount(4096) << ' ' << PageCount(2) << ' ' << PageIndex(3) << ' '
      << RamOffset(4) << ' ' << HostAddress(5) << ' ' << SlotId{0, 6} << ' '
      << PageRun{PageIndex(7), PageCount(1)};
  EXPECT_EQ(out.str(),
            "4KiB 2 pages page 0x3 RAM offset 0x4 host address 0x5 slot 0:6 "
            "pages [0x7, 0x8)");
}

TEST(TypesTest, ByteCountPrintsTheLargestExactUnit) {
  EXPECT_EQ(ToString(ByteCount(0)), "0");
  EXPECT_EQ(ToString(ByteCount(1023)), "1023");
  EXPECT_EQ(ToString(kKiB), "1KiB");
  EXPECT_EQ(ToString(ByteCount(1025)), "1025");
  EXPECT_EQ(ToString(ByteCount(1536 * kMiB.value())), "1536MiB");
  EXPECT_EQ(ToString(ByteCount(4 * kGiB.value())), "4GiB");
  EXPECT_EQ(ToString(ByteCount(16 * kTiB.value())), "16TiB");
  EXPECT_EQ(ToString(ByteCount(UINT64_MAX)), "18446744073709551615");
}

ByteCount Parsed(absl::string_view text) {
  ByteCount bytes;
  std::string error;
  EXPECT_TRUE(ParseByteCount(text, &bytes, &error)) << error;
  return bytes;
}

TEST(TypesTest, ParsesEveryUnit) {
  EXPECT_EQ(Parsed("0"), ByteCount(0));
  EXPECT_EQ(Parsed("4096"), ByteCount(4096));
  EXPECT_EQ(Parsed("7B"), ByteCount(7));
  EXPECT_EQ(Parsed("1KiB"), kKiB);
  EXPECT_EQ(Parsed("1MiB"), kMiB);
  EXPECT_EQ(Parsed("1GiB"), kGiB);
  EXPECT_EQ(Parsed("1TiB"), kTiB);
}

TEST(TypesTest, ParsesWhatItPrints) {
  for (uint64_t n : {uint64_t{0}, uint64_t{1}, uint64_t{4096}, 3 * kMiB.value(),
                     5 * kTiB.value(), UINT64_MAX}) {
    EXPECT_EQ(Parsed(AbslUnparseFlag(ByteCount(n))), ByteCount(n));
  }
}

TEST(TypesTest, ParsesUpToTheLimitAndNoFurther) {
  EXPECT_EQ(Parsed("18446744073709551615"), ByteCount(UINT64_MAX));
  EXPECT_EQ(Parsed("16777215TiB"), ByteCount(16777215 * kTiB.value()));
  for (const char* text : {"18446744073709551616", "16777216TiB"}) {
    ByteCount bytes(5);
    std::string error;
    EXPECT_FALSE(ParseByteCount(text, &bytes, &error));
    EXPECT_EQ(error,
              std::string("\"") + text + "\" is more than 2^64 - 1 bytes");
    EXPECT_EQ(bytes, ByteCount(5));
  }
}

TEST(TypesTest, RefusesWhatIsNotASize) {
  for (const char* text :
       {"", "B", "KiB", "4KB", "4K", "4kib", "-1", "+1", " 1", "1 ", "1 KiB",
        "1.5GiB", "0x10", "1KiBB", "1BKiB"}) {
    ByteCount bytes(5);
    std::string error;
    EXPECT_FALSE(AbslParseFlag(text, &bytes, &error)) << text;
    EXPECT_EQ(error, std::string("\"") + text +
                         "\" is not a size; write a whole number and one of "
                         "B, KiB, MiB, GiB, TiB, such as 512MiB");
    EXPECT_EQ(bytes, ByteCount(5));
  }
}

}  // namespace
}  // namespace postcopy
