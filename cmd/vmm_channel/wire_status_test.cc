#include "cmd/vmm_channel/wire_status.h"

#include "gtest/gtest.h"

namespace postcopy {
namespace {

TEST(WireStatusTest, KnowsTheCanonicalCodes) {
  EXPECT_TRUE(StatusFromWire(0, "ignored").ok());
  EXPECT_EQ(StatusFromWire(1, "x"), absl::CancelledError("x"));
  EXPECT_EQ(StatusFromWire(16, "x"), absl::UnauthenticatedError("x"));
}

TEST(WireStatusTest, OtherCodesAreUnknown) {
  EXPECT_EQ(StatusFromWire(17, "x"), absl::UnknownError("x"));
  EXPECT_EQ(StatusFromWire(UINT32_MAX, "x"), absl::UnknownError("x"));
}

TEST(WireStatusTest, TextsAreMadePrintable) {
  EXPECT_EQ(Printable("it's \"fine\"~"), "it's \"fine\"~");
  EXPECT_EQ(Printable("a\n\x1b[2Jb\x7f\xff"), "a??[2Jb??");
  EXPECT_EQ(Printable(std::string(5000, 'x')).size(), 1024u);
  EXPECT_EQ(StatusFromWire(13, "a\nb").message(), "a?b");
}

}  // namespace
}  // namespace postcopy
