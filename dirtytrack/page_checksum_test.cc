#include "dirtytrack/page_checksum.h"

#include <cstring>
#include <vector>

#include "dirtytrack/types.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

std::vector<uint8_t> Bytes(const char* text) {
  return std::vector<uint8_t>(text, text + std::strlen(text));
}

TEST(Crc32cTest, VectorsOfRfc3720) {
  EXPECT_EQ(Crc32c(std::vector<uint8_t>(32, 0x00)), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::vector<uint8_t>(32, 0xFF)), 0x62A8AB43u);
  std::vector<uint8_t> counting(32);
  for (uint8_t i = 0; i < 32; ++i) counting[i] = i;
  EXPECT_EQ(Crc32c(counting), 0x46DD794Eu);
}

TEST(Crc32cTest, CheckValueOfTheCatalogue) {
  EXPECT_EQ(Crc32c(Bytes("123456789")), 0xE3069283u);
}

TEST(Crc32cTest, OfNothing) { EXPECT_EQ(Crc32c({}), 0u); }

// Bit by bit, from the polynomial.
uint32_t SlowCrc32c(const std::vector<uint8_t>& bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (uint8_t byte : bytes) {
    crc ^= byte;
    for (int i = 0; i < 8; ++i) {
      crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0u);
    }
  }
  return ~crc;
}

TEST(Crc32cTest, AgreesWithTheDefinitionAtEveryLength) {
  std::vector<uint8_t> bytes;
  for (int i = 0; i < 300; ++i) {
    EXPECT_EQ(Crc32c(bytes), SlowCrc32c(bytes)) << i;
    bytes.push_back(static_cast<uint8_t>(i * 151 + 17));
  }
  bytes.resize(kPageSize, 0x5A);
  EXPECT_EQ(Crc32c(bytes), SlowCrc32c(bytes));
}

TEST(IsZeroTest, FindsASingleBitAnywhere) {
  std::vector<uint8_t> page(kPageSize, 0);
  EXPECT_TRUE(IsZero(page));
  for (size_t i = 0; i < page.size(); ++i) {
    page[i] = 1 << (i % 8);
    EXPECT_FALSE(IsZero(page)) << i;
    page[i] = 0;
  }
}

TEST(IsZeroTest, AnyLengthAndAlignment) {
  EXPECT_TRUE(IsZero({}));
  std::vector<uint8_t> bytes(130, 0);
  for (size_t begin = 0; begin < 20; ++begin) {
    for (size_t size = 1; begin + size < bytes.size(); ++size) {
      const absl::Span<const uint8_t> part =
          absl::MakeConstSpan(bytes).subspan(begin, size);
      EXPECT_TRUE(IsZero(part));
      // A byte behind the end does not count, the last one does.
      bytes[begin + size] = 1;
      EXPECT_TRUE(IsZero(part)) << begin << ' ' << size;
      bytes[begin + size] = 0;
      bytes[begin + size - 1] = 1;
      EXPECT_FALSE(IsZero(part)) << begin << ' ' << size;
      bytes[begin + size - 1] = 0;
    }
  }
}

TEST(PageChecksumTest, OfNumbersIsOverTheirBytesInOrder) {
  EXPECT_EQ(NumbersCrc32c({}), 0u);
  const uint8_t bytes[16] = {2, 1, 0, 0, 0, 0, 0, 0, 3};
  EXPECT_EQ(NumbersCrc32c({0x102, 3}), Crc32c(bytes));
  EXPECT_NE(NumbersCrc32c({3, 0x102}), Crc32c(bytes));
}

}  // namespace
}  // namespace postcopy
