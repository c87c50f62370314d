#include "cmd/config/config_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "test_config.pb.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::StatusOr<std::unique_ptr<ConfigFile>> Parse(const std::string& text) {
  return ConfigFile::Parse("a.conf", text, test::TestConfig());
}

std::string MistakeIn(const std::string& text) {
  const auto file = Parse(text);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(file.status().message());
}

std::string FileWith(const std::string& text) {
  std::string path = ::testing::TempDir() + "/config_file_test.conf";
  std::ofstream(path) << text;
  return path;
}

TEST(ConfigFileTest, ReadsTextWithComments) {
  const auto file = Parse(
      "# A comment.\n"
      "test_name: \"a\"  # and one behind it\n"
      "test_numbers: [1, 2]\n");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->message().ShortDebugString(),
            "test_name: \"a\" test_numbers: 1 test_numbers: 2");
}

TEST(ConfigFileTest, ATextWithoutAnythingIsOne) { EXPECT_TRUE(Parse("").ok()); }

TEST(ConfigFileTest, KnowsWhereEachValueIs) {
  const auto file =
      Parse("\n  test_name: \"a\"\ntest_names: [\"b\",\n  \"c\"]");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto* type = test::TestConfig::descriptor();
  EXPECT_EQ((*file)->Where(type->FindFieldByName("test_name"), -1),
            "a.conf:2:3");
  EXPECT_THAT((*file)->Where(type->FindFieldByName("test_names"), 0),
              StartsWith("a.conf:3:"));
}

TEST(ConfigFileTest, SaysWhereAnUnknownFieldIs) {
  EXPECT_THAT(MistakeIn("test_name: \"a\"\n  test_nam: \"b\"\n"),
              StartsWith("a.conf:2:"));
  EXPECT_THAT(MistakeIn("test_name: \"a\"\n  test_nam: \"b\"\n"),
              HasSubstr("has no field named \"test_nam\""));
}

TEST(ConfigFileTest, SaysWhereAValueIsThatIsNone) {
  EXPECT_THAT(MistakeIn("test_count: 4294967295\ntest_bytes: -1"),
              StartsWith("a.conf:2:13: "));
  EXPECT_THAT(MistakeIn("test_count: 4294967296"), StartsWith("a.conf:1:13: "));
  EXPECT_THAT(MistakeIn("test_switch: maybe"), StartsWith("a.conf:1:"));
}

TEST(ConfigFileTest, AFieldTwiceIsAMistake) {
  EXPECT_THAT(MistakeIn("test_count: 1\ntest_count: 2"),
              HasSubstr("specified multiple times"));
}

TEST(ConfigFileTest, WhatIsNoTextOfAMessageIsAMistake) {
  EXPECT_THAT(MistakeIn("{\"test_count\": 1}"), StartsWith("a.conf:1:1: "));
  EXPECT_THAT(MistakeIn(std::string("\0\1\2", 3)), StartsWith("a.conf:1:"));
  MistakeIn(std::string(10000, '{'));
}

TEST(ConfigFileReadTest, ReadsAsManyBytesAsTheLimitAndNoMore) {
  const std::string text = "test_count: 1\n#";
  const std::string most =
      text + std::string(kConfigBytesMax - text.size(), 'x');
  EXPECT_TRUE(ConfigFile::Read(FileWith(most), test::TestConfig()).ok());
  const auto more = ConfigFile::Read(FileWith(most + "x"), test::TestConfig());
  EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(more.status().message()), HasSubstr("at most 65536"));
}

TEST(ConfigFileReadTest, SaysWhyAFileCannotBeRead) {
  const auto missing = ConfigFile::Read("/nowhere/a.conf", test::TestConfig());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()),
              HasSubstr("/nowhere/a.conf"));
}

// Each would read as an empty configuration, for ever, or not at all.
TEST(ConfigFileReadTest, OnlyARegularFileIsRead) {
  const std::string fifo = ::testing::TempDir() + "/fifo";
  ::unlink(fifo.c_str());
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path :
       {fifo, std::string("/dev/zero"), std::string("/dev/null"),
        ::testing::TempDir()}) {
    const auto read = ConfigFile::Read(path, test::TestConfig());
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_THAT(
        std::string(read.status().message()),
        HasSubstr("the configuration file " + path + " is not a regular file"));
  }
}

}  // namespace
}  // namespace postcopy
