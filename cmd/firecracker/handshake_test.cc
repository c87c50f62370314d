#include "cmd/firecracker/handshake.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cmd/vmm_channel/test_support.h"
#include "dirtytrack/ram_layout.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr uint64_t k2MiB = uint64_t{2} << 20;
constexpr uint64_t k1GiB = uint64_t{1} << 30;

FirecrackerRegion Region(uint64_t address, uint64_t size, uint64_t offset,
                         uint64_t page_size = kPageSize) {
  return {HostAddress(address), ByteCount(size), offset, ByteCount(page_size)};
}

// A mapping as Firecracker writes it, with `page_size_keys` at its end.
std::string Mapping(const std::string& address, const std::string& size,
                    const std::string& offset,
                    const std::string& page_size_keys) {
  return absl::StrCat("{\"base_host_virt_addr\":", address, ",\"size\":", size,
                      ",\"offset\":", offset, ",", page_size_keys, "}");
}

std::string Mapping(uint64_t address, uint64_t size, uint64_t offset,
                    uint64_t page_size = kPageSize) {
  return Mapping(absl::StrCat(address), absl::StrCat(size),
                 absl::StrCat(offset),
                 absl::StrCat("\"page_size\":", page_size,
                              ",\"page_size_kib\":", page_size));
}

std::string Array(const std::vector<std::string>& mappings) {
  return absl::StrCat("[", absl::StrJoin(mappings, ","), "]");
}

// A handshake of one page, padded to `bytes` by a key that nobody knows.
std::string Padded(size_t bytes) {
  const std::string head = "[{\"pad\":\"";
  const std::string tail = "\"," + Mapping(4096, 4096, 0).substr(1) + "]";
  return head + std::string(bytes - head.size() - tail.size(), 'x') + tail;
}

// One page in an array that holds arrays, `depth` in all.
std::string Nested(size_t depth) {
  return absl::StrCat("[{\"new\":", std::string(depth - 2, '['),
                      std::string(depth - 2, ']'), ",",
                      Mapping(4096, 4096, 0).substr(1), "]");
}

std::string ManyRegions(size_t count) {
  std::vector<std::string> mappings;
  for (size_t i = 0; i < count; ++i) {
    mappings.push_back(Mapping(i * kPageSize, kPageSize, i * kPageSize));
  }
  return Array(mappings);
}

absl::Status Refusal(const std::string& json) {
  return ParseHandshake(json).status();
}

struct Accepted {
  const char* what;
  std::string json;
  std::vector<FirecrackerRegion> regions;
};

TEST(ParseHandshakeTest, ReadsWhatFirecrackerMaySend) {
  const std::vector<FirecrackerRegion> page = {Region(4096, 4096, 0)};
  const Accepted cases[] = {
      {"Firecracker 1.10",
       "[{\"base_host_virt_addr\":140247643815936,\"size\":134217728,"
       "\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]",
       {Region(140247643815936, 134217728, 0)}},
      {"only the new key",
       Array({Mapping("4096", "4096", "0", "\"page_size\":4096")}), page},
      {"only the old key",
       Array({Mapping("4096", "4096", "0", "\"page_size_kib\":4096")}), page},
      {"the new key wins, however wrong the old one is",
       Array({Mapping("4096", "4096", "0",
                      "\"page_size_kib\":4,\"page_size\":4096")}),
       page},
      {"null is no key",
       Array({Mapping("4096", "4096", "0",
                      "\"page_size\":null,\"page_size_kib\":4096")}),
       page},
      {"unknown keys, nested, with brackets and quotes in strings",
       Array({Mapping("4096", "4096", "0",
                      "\"a\":{\"b\":[{\"c]}\":\"\\\"]}\\\\\"},[1.5e3,-1]],"
                      "\"d\":true},\"page_size\":4096,\"e\":null")}),
       page},
      {"white space around all",
       " \t\r\n[ " + Mapping(4096, 4096, 0) + "\n] \t\r\n", page},
      {"2 MiB pages",
       Array({Mapping(k1GiB, 3 * k2MiB, 4096, k2MiB)}),
       {Region(k1GiB, 3 * k2MiB, 4096, k2MiB)}},
      {"1 GiB pages",
       Array({Mapping(k1GiB, k1GiB, 0, k1GiB)}),
       {Region(k1GiB, k1GiB, 0, k1GiB)}},
      {"neighbours, in the order of the array",
       Array({Mapping(8192, 4096, 4096), Mapping(4096, 4096, 0)}),
       {Region(8192, 4096, 4096), Region(4096, 4096, 0)}},
      {"the last addresses and offsets there are",
       Array({Mapping(UINT64_MAX - 8191, 4096, UINT64_MAX - 8191)}),
       {Region(UINT64_MAX - 8191, 4096, UINT64_MAX - 8191)}},
  };
  for (const Accepted& c : cases) {
    const auto regions = ParseHandshake(c.json);
    ASSERT_TRUE(regions.ok()) << c.what << ": " << regions.status();
    EXPECT_EQ(*regions, c.regions) << c.what;
  }
}

struct Refused {
  std::string json;
  const char* message;
};

TEST(ParseHandshakeTest, RefusesWhatIsNoArrayOfObjects) {
  const Refused cases[] = {
      {"", "ends after 0 bytes, before the array does"},
      {"  ", "ends after 2 bytes"},
      {"[", "ends after 1 bytes"},
      {Mapping(4096, 4096, 0), "begins with byte 123 instead of '['"},
      {"hello", "begins with byte 104"},
      {"[" + Mapping(4096, 4096, 0), "before the array does; send the whole"},
      {Array({Mapping(4096, 4096, 0)}) + "x", "something follows the array"},
      {Array({Mapping(4096, 4096, 0)}) + "[]", "something follows the array"},
      {Array({Mapping(4096, 4096, 0)}) + std::string(1, '\0'),
       "something follows the array"},
      {"[1]", "byte 1 (49) begins no object"},
      {"[null]", "begins no object"},
      {"[[{}]]", "begins no object"},
      {"[\"\"]", "begins no object"},
      {"[{]}", "bracket at byte 2 does not match"},
      {"[}", "begins no object"},
      {"[{\"a\":[}]}]", "bracket at byte 7 does not match"},
      {"[{'size':1}]", "byte 2 (39) has no place in JSON"},
      {"[{\"a\":/**/1}]", "byte 6 (47) has no place in JSON"},
      {std::string("[{\"a\":\0}]", 9), "byte 6 (0) has no place in JSON"},
      {"[{\"a\nb\":1}]", "byte 4 (10) is a control character in a string"},
      {"[{\"\xff\":1}]", "not a JSON array of Firecracker's mappings"},
      {"[{\"a\" 1}]", "not a JSON array of Firecracker's mappings"},
      {"[{\"size\":\"big\"}]", "not a JSON array of Firecracker's mappings"},
      {"[{\"size\":{}}]", "not a JSON array of Firecracker's mappings"},
      {"[{\"size\":[1]}]", "not a JSON array of Firecracker's mappings"},
      {"[{\"size\":-4096}]", "not a JSON array of Firecracker's mappings"},
      {"[{\"size\":4096.5}]", "not a JSON array of Firecracker's mappings"},
      {"[{\"size\":18446744073709551616}]",
       "not a JSON array of Firecracker's mappings"},
      {"[,]", "not a JSON array of Firecracker's mappings"},
      {"[{}{}]", "not a JSON array of Firecracker's mappings"},
  };
  for (const Refused& c : cases) {
    EXPECT_TRUE(Is(Refusal(c.json), StatusCode::kInvalidArgument, c.message))
        << c.json;
  }
}

TEST(ParseHandshakeTest, RefusesRegionsThatCannotBe) {
  const Refused cases[] = {
      {"[]", "the array is empty; send 1 to 64 regions"},
      {"[{}]", "region 0 has no base_host_virt_addr"},
      {"[{\"base_host_virt_addr\":4096}]", "region 0 has no size"},
      {"[{\"base_host_virt_addr\":4096,\"size\":4096}]",
       "region 0 has no offset"},
      {Array({Mapping("4096", "4096", "0", "\"x\":1")}),
       "region 0 has no page_size (nor page_size_kib, its old name)"},
      {Array({Mapping("4096", "null", "0", "\"page_size\":4096")}),
       "region 0 has no size"},
      {Array({Mapping(4096, 0, 0)}), "region 0: size is 0"},
      {Array({Mapping(4096, 4096, 0, 0)}), "region 0: page_size 0 is not"},
      {Array({Mapping(4096, 4096, 0, 4)}), "use 4096, 2097152 or 1073741824"},
      {Array({Mapping(4096, 4096, 0, 8192)}), "page_size 8192 is not known"},
      {Array({Mapping(4097, 4096, 0)}),
       "region 0: base_host_virt_addr 4097 is not a multiple of 4096"},
      {Array({Mapping(4096, 4097, 0)}), "size 4097 is not a multiple of 4096"},
      {Array({Mapping(4096, 4096, 1)}), "offset 1 is not a multiple of 4096"},
      {Array({Mapping(4096, k2MiB, 0, k2MiB)}),
       "base_host_virt_addr 4096 is not a multiple of 2097152"},
      {Array({Mapping(k2MiB, 4096, 0, k2MiB)}),
       "size 4096 is not a multiple of 2097152"},
      {Array({Mapping(UINT64_MAX - 4095, 4096, 0)}),
       "base_host_virt_addr 18446744073709547520 and size 4096 together exceed "
       "64 bits"},
      {Array({Mapping(4096, 4096, UINT64_MAX - 4095)}),
       "offset 18446744073709547520 and size 4096 together exceed 64 bits"},
      {Array({Mapping(4096, 4096, 0), Mapping(8192, 1, 0)}), "region 1: size"},
      {Array({Mapping(4096, 4096, 0), Mapping(4096, 4096, 4096)}),
       "regions 0 and 1 overlap in host addresses"},
      {Array({Mapping(12288, 4096, 0), Mapping(65536, 4096, 0),
              Mapping(4096, 12288, 4096)}),
       "regions 0 and 2 overlap"},
  };
  for (const Refused& c : cases) {
    EXPECT_TRUE(Is(Refusal(c.json), StatusCode::kInvalidArgument, c.message))
        << c.json;
  }
}

TEST(ParseHandshakeTest, TakesAsManyRegionsAsAllowed) {
  const auto regions = ParseHandshake(ManyRegions(kMaxRegions));
  ASSERT_TRUE(regions.ok()) << regions.status();
  EXPECT_EQ(regions->size(), kMaxRegions);
  EXPECT_TRUE(Is(Refusal(ManyRegions(kMaxRegions + 1)),
                 StatusCode::kInvalidArgument,
                 "it has 65 regions; at most 64 are allowed"));
}

TEST(ParseHandshakeTest, TakesAsManyBytesAsAllowed) {
  EXPECT_TRUE(ParseHandshake(Padded(kHandshakeBytesMax)).ok());
  const std::string spaced = Padded(kHandshakeBytesMax - 1) + " ";
  EXPECT_TRUE(ParseHandshake(spaced).ok());
  for (const std::string& json :
       {Padded(kHandshakeBytesMax + 1), spaced + " "}) {
    EXPECT_TRUE(Is(Refusal(json), StatusCode::kInvalidArgument,
                   "longer than 65536 bytes"));
  }
}

TEST(ParseHandshakeTest, TakesAsDeepNestingAsAllowed) {
  const auto regions = ParseHandshake(Nested(kHandshakeNestingMax));
  EXPECT_TRUE(regions.ok()) << regions.status();
  EXPECT_TRUE(Is(Refusal(Nested(kHandshakeNestingMax + 1)),
                 StatusCode::kInvalidArgument, "nested more than 32 deep"));
}

TEST(HandshakeScannerTest, FindsTheEndByteByByte) {
  const std::string json =
      " " + Array({Mapping("1", "2", "3", "\"]\\\"]\":\"\\\\\",\"a\":[[]]")});
  HandshakeScanner scanner;
  for (size_t i = 0; i < json.size(); ++i) {
    ASSERT_FALSE(scanner.complete()) << i;
    ASSERT_EQ(scanner.bytes(), i);
    ASSERT_TRUE(scanner.Scan(json.substr(i, 1)).ok()) << i;
  }
  EXPECT_TRUE(scanner.complete());
  EXPECT_EQ(scanner.bytes(), json.size());
}

TEST(HandshakeScannerTest, LooksAtNothingBehindTheEnd) {
  HandshakeScanner scanner;
  EXPECT_TRUE(scanner.Scan("[{}]}garbage").ok());
  EXPECT_TRUE(scanner.complete());
  EXPECT_EQ(scanner.bytes(), 4u);
  EXPECT_TRUE(scanner.Scan("]'").ok());
  EXPECT_EQ(scanner.bytes(), 4u);
}

TEST(HandshakeScannerTest, RefusesAtTheFirstByteThatCannotBe) {
  HandshakeScanner scanner;
  EXPECT_TRUE(scanner.Scan("[{").ok());
  EXPECT_TRUE(
      Is(scanner.Scan("]"), StatusCode::kInvalidArgument, "bracket at byte 2"));
  EXPECT_FALSE(scanner.complete());
}

TEST(HandshakeScannerTest, EndsWithinTheLimitOrNotAtAll) {
  const std::string longest = Padded(kHandshakeBytesMax);
  HandshakeScanner fits;
  EXPECT_TRUE(fits.Scan(longest).ok());
  EXPECT_TRUE(fits.complete());
  // What follows is not the handshake's.
  EXPECT_TRUE(fits.Scan("x").ok());

  HandshakeScanner endless;
  EXPECT_TRUE(endless.Scan(std::string(kHandshakeBytesMax, ' ')).ok());
  EXPECT_TRUE(Is(endless.Scan(" "), StatusCode::kInvalidArgument,
                 "longer than 65536 bytes"));
}

}  // namespace
}  // namespace postcopy
