#include "cmd/postcopyctl/flag_parser.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "dirtytrack/types.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

ABSL_FLAG(std::string, test_text, "", "A text.");
ABSL_FLAG(bool, test_switch, false, "A switch.");
ABSL_FLAG(uint32_t, test_number, 7, "A number.");
ABSL_FLAG(postcopy::ByteCount, test_size, postcopy::ByteCount(0), "A size.");

namespace postcopy {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FlagParserTest : public ::testing::Test {
 protected:
  absl::FlagSaver saver_;
};

void ExpectError(const std::vector<std::string>& arguments,
                 const std::string& text) {
  auto line = ParseFlags(arguments);
  EXPECT_EQ(line.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(line.status().message()), HasSubstr(text));
}

TEST_F(FlagParserTest, ReadsValuesOfAllTypes) {
  auto line = ParseFlags({"migrate", "--test_text=a=b", "--test_number", "9",
                          "--test_size=2MiB", "--test-switch", "rest"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_THAT(line->arguments, ElementsAre("migrate", "rest"));
  EXPECT_FALSE(line->help);
  EXPECT_THAT(line->flags, ElementsAre("test_number", "test_size",
                                       "test_switch", "test_text"));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_text), "a=b");
  EXPECT_EQ(absl::GetFlag(FLAGS_test_number), 9u);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_size), ByteCount(2 << 20));
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch));
}

TEST_F(FlagParserTest, ASwitchCanBeTurnedOff) {
  absl::SetFlag(&FLAGS_test_switch, true);
  ASSERT_TRUE(ParseFlags({"--notest_switch"}).ok());
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_switch));
  ASSERT_TRUE(ParseFlags({"--test_switch=true"}).ok());
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch));
}

TEST_F(FlagParserTest, AnEmptyValueIsAValue) {
  absl::SetFlag(&FLAGS_test_text, "before");
  ASSERT_TRUE(ParseFlags({"--test_text="}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_text), "");
}

TEST_F(FlagParserTest, FindsTheCallForHelp) {
  EXPECT_TRUE(ParseFlags({"--help"})->help);
  EXPECT_TRUE(ParseFlags({"migrate", "-h"})->help);
}

TEST_F(FlagParserTest, NothingAfterTwoDashesIsAFlag) {
  auto line = ParseFlags({"a", "--", "--test_number=1", "b"});
  ASSERT_TRUE(line.ok());
  EXPECT_THAT(line->arguments, ElementsAre("a", "--test_number=1", "b"));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_number), 7u);
}

TEST_F(FlagParserTest, SaysWhatIsWrong) {
  ExpectError({"--nonsense=1"}, "there is no flag --nonsense");
  ExpectError({"-x"}, "there is no flag -x");
  ExpectError({"--notest_text"}, "there is no flag --notest_text");
  ExpectError({"--test_number"}, "--test_number needs a value");
  ExpectError({"--test_number=many"}, "--test_number=many");
  ExpectError({"--test_size=1MB"}, "--test_size=1MB cannot be understood: ");
}

}  // namespace
}  // namespace postcopy
