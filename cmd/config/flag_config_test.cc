#include "cmd/config/flag_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/status/status.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "test_config.pb.h"

ABSL_FLAG(std::string, test_name, "nobody", "");
ABSL_FLAG(absl::Duration, test_time, absl::Seconds(10), "");
ABSL_FLAG(uint32_t, test_count, 3, "");
ABSL_FLAG(uint64_t, test_bytes, 0, "");
ABSL_FLAG(bool, test_switch, false, "");
ABSL_FLAG(std::string, test_numbers, "", "");
ABSL_FLAG(std::vector<std::string>, test_names, {}, "");
ABSL_DECLARE_FLAG(std::string, config);
ABSL_DECLARE_FLAG(bool, print_config);

namespace postcopy {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::Status CheckCount() {
  if (absl::GetFlag(FLAGS_test_count) <= 9) return absl::OkStatus();
  return absl::InvalidArgumentError("must be at most 9");
}

absl::Status CheckPair() {
  if (absl::GetFlag(FLAGS_test_count) != 8 ||
      absl::GetFlag(FLAGS_test_switch)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError("--test_count=8 needs --test_switch");
}

class FlagConfigTest : public ::testing::Test {
 protected:
  // Loads this text below these arguments.
  std::optional<int> Load(const std::string& text,
                          std::vector<std::string> arguments = {}) {
    Write(text);
    arguments_ = std::move(arguments);
    arguments_.insert(arguments_.begin(), "daemon");
    arguments_.push_back("--config=" + path_);
    argv_.clear();
    for (std::string& argument : arguments_) argv_.push_back(argument.data());
    argv_.push_back(nullptr);
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    const std::optional<int> code =
        config_.Load(static_cast<int>(arguments_.size()), argv_.data());
    out_ = ::testing::internal::GetCapturedStdout();
    err_ = ::testing::internal::GetCapturedStderr();
    return code;
  }

  void Write(const std::string& text) { std::ofstream(path_) << text; }

  absl::FlagSaver saver_;
  const std::string path_ = ::testing::TempDir() + "/flag_config_test.conf";
  const test::TestConfig type_;
  FlagConfig config_{&type_, {{"test_count", CheckCount}, {"", CheckPair}}};
  std::vector<std::string> arguments_;
  std::vector<char*> argv_;
  std::string out_;
  std::string err_;
};

constexpr char kEveryField[] =
    "test_name: \"a b\\\"c\"\n"
    "test_time: \"1m30s\"\n"
    "test_count: 7\n"
    "test_bytes: 18446744073709551615\n"
    "test_switch: true\n"
    "test_numbers: 0\n"
    "test_numbers: 4294967295\n"
    "test_names: \"x\"\n"
    "test_names: \"y z\"\n";

TEST_F(FlagConfigTest, EveryTypeOfFieldSetsItsFlag) {
  EXPECT_EQ(Load(kEveryField), std::nullopt) << err_;
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "a b\"c");
  EXPECT_EQ(absl::GetFlag(FLAGS_test_time), absl::Seconds(90));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 7u);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_bytes), UINT64_MAX);
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_numbers), "0,4294967295");
  EXPECT_THAT(absl::GetFlag(FLAGS_test_names), ElementsAre("x", "y z"));
}

TEST_F(FlagConfigTest, WithoutAFileTheFlagsCount) {
  arguments_ = {"daemon", "--test_count=4"};
  char* argv[] = {arguments_[0].data(), arguments_[1].data(), nullptr};
  EXPECT_EQ(config_.Load(2, argv), std::nullopt);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 4u);
}

TEST_F(FlagConfigTest, TheCommandLineOverridesTheFile) {
  EXPECT_EQ(Load("test_count: 7 test_switch: true test_name: \"file\" "
                 "test_names: [\"file\"]",
                 {"--test_count=3", "--notest_switch", "--test_names="}),
            std::nullopt);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 3u) << "the default, but given";
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_switch));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "file") << "not given";
  EXPECT_THAT(absl::GetFlag(FLAGS_test_names), IsEmpty());
}

TEST_F(FlagConfigTest, WhatIsPrintedIsAFileOfTheSameMeaning) {
  EXPECT_EQ(Load(kEveryField, {"--print_config"}), 0);
  EXPECT_EQ(out_, kEveryField);
  EXPECT_EQ(Load("", {"--print_config"}), 0);
  EXPECT_EQ(out_,
            "test_name: \"nobody\"\ntest_time: \"10s\"\ntest_count: 3\n"
            "test_bytes: 0\ntest_switch: false\n");
  const std::string printed = out_;
  EXPECT_EQ(Load(printed, {"--print_config"}), 0);
  EXPECT_EQ(out_, printed);
}

TEST_F(FlagConfigTest, ARightConfigurationIsOk) {
  EXPECT_EQ(Load(kEveryField, {"--check_config"}), 0);
  EXPECT_EQ(out_, "OK\n");
  EXPECT_EQ(err_, "");
}

TEST_F(FlagConfigTest, WhatTheTypeOfAFlagRefusesIsToldWithItsPlace) {
  EXPECT_EQ(Load("\ntest_time: \"10 parsecs\""), 2);
  EXPECT_THAT(err_, HasSubstr(path_ + ":2:1: test_time: "));
  EXPECT_EQ(Load("nonsense: 1", {"--check_config"}), 2);
  EXPECT_THAT(err_, HasSubstr(path_ + ":1:"));
  EXPECT_EQ(out_, "") << "not OK";
}

TEST_F(FlagConfigTest, WhatACheckRefusesIsToldWithItsPlace) {
  EXPECT_EQ(Load("test_count: 9"), std::nullopt);
  EXPECT_EQ(Load("test_bytes: 1\n test_count: 10"), 2);
  EXPECT_EQ(err_, "error: " + path_ + ":2:2: test_count: must be at most 9\n");
  EXPECT_EQ(Load("", {"--test_count=10"}), 2);
  EXPECT_EQ(err_, "error: --test_count: must be at most 9\n");
}

TEST_F(FlagConfigTest, WhatDoesNotGoTogetherIsToldWithoutAPlace) {
  EXPECT_EQ(Load("test_count: 8 test_switch: true"), std::nullopt);
  for (const char* argument : {"--check_config", "--test_bytes=1"}) {
    EXPECT_EQ(Load("test_count: 8", {argument}), 2);
    EXPECT_EQ(err_,
              "error: " + path_ + ": --test_count=8 needs --test_switch\n");
  }
  EXPECT_EQ(out_, "");
  // It can be printed all the same.
  EXPECT_EQ(Load("test_count: 8", {"--print_config"}), 0);
  EXPECT_THAT(out_, HasSubstr("test_count: 8\n"));
  char name[] = "daemon";
  char eight[] = "--test_count=8";
  char* argv[] = {name, eight, nullptr};
  absl::SetFlag(&FLAGS_config, "");
  absl::SetFlag(&FLAGS_print_config, false);
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(config_.Load(2, argv), 2);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "error: --test_count=8 needs --test_switch\n");
}

TEST_F(FlagConfigTest, FlagsComeFromNowhereElse) {
  for (const char* argument :
       {"--flagfile=/nowhere", "-flagfile", "--fromenv=test_count",
        "--tryfromenv=test_count"}) {
    EXPECT_EQ(Load("", {argument}), 2) << argument;
    EXPECT_THAT(err_, HasSubstr("is not for a daemon")) << argument;
    EXPECT_THAT(err_, HasSubstr("--config")) << argument;
  }
  // Behind "--" there are no flags, nor is every word one.
  EXPECT_EQ(Load("", {"flagfile", "--test_name=--flagfile"}), std::nullopt);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "--flagfile");
  arguments_ = {"daemon", "--", "--flagfile=/nowhere"};
  char* argv[] = {arguments_[0].data(), arguments_[1].data(),
                  arguments_[2].data(), nullptr};
  EXPECT_EQ(config_.Load(3, argv), std::nullopt);
}

TEST_F(FlagConfigTest, AnElementMustBeOne) {
  for (const char* element : {"", "a,b"}) {
    EXPECT_EQ(Load(std::string("test_names: \"") + element + "\""), 2);
    EXPECT_THAT(err_, HasSubstr(":1:1: test_names: an element must not"));
  }
}

TEST_F(FlagConfigTest, AFileThatCannotBeReadIsAMistake) {
  arguments_ = {"daemon", "--config=/nowhere/a.conf"};
  char* argv[] = {arguments_[0].data(), arguments_[1].data(), nullptr};
  EXPECT_EQ(config_.Load(2, argv), 2);
}

TEST_F(FlagConfigTest, AReloadTakesWhatItMayAndNamesTheRest) {
  ASSERT_EQ(Load("test_name: \"a\" test_count: 1", {"--test_bytes=5"}),
            std::nullopt);
  Write("test_name: \"b\" test_count: 2 test_bytes: 6");
  std::vector<std::string> waiting;
  auto changed = config_.Reload({"test_name", "test_bytes"}, &waiting);
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_THAT(*changed, ElementsAre("test_name"));
  EXPECT_THAT(waiting, ElementsAre("test_count"));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "b");
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 1u);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_bytes), 5u) << "the command line's";
  // What a file says no longer goes back to its default.
  Write("test_count: 1");
  changed = config_.Reload({"test_name"}, &waiting);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "nobody");
  EXPECT_THAT(waiting, IsEmpty());
}

TEST_F(FlagConfigTest, AReloadOfAWrongFileChangesNothing) {
  ASSERT_EQ(Load("test_name: \"a\""), std::nullopt);
  std::vector<std::string> waiting;
  for (const char* text :
       {"test_name: \"b\" x: 1", "test_name: \"b\" test_count: 10"}) {
    Write(text);
    const auto changed = config_.Reload({"test_name"}, &waiting);
    EXPECT_EQ(changed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "a");
    EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 3u);
  }
}

TEST_F(FlagConfigTest, AReloadSaysWhatCameOfIt) {
  ASSERT_EQ(Load("test_name: \"a\""), std::nullopt);
  EXPECT_EQ(ReloadConfig(config_, {"test_name"}),
            "has read its configuration again");
  Write("test_name: \"b\" test_count: 1 test_bytes: 1");
  EXPECT_EQ(ReloadConfig(config_, {"test_name"}),
            "has read its configuration again; changed: test_name; waiting for "
            "a restart: test_bytes, test_count");
  Write("test_count: 10");
  EXPECT_EQ(ReloadConfig(config_, {}),
            "keeps its configuration, because the new one is wrong: " + path_ +
                ":1:1: test_count: must be at most 9");
}

TEST_F(FlagConfigTest, WhatIsFlagOrFieldAloneIsNamed) {
  EXPECT_THAT(config_.Unmatched(), IsEmpty());
  const test::LongerConfig other;
  const std::vector<std::string> unmatched = FlagConfig(&other, {}).Unmatched();
  EXPECT_THAT(absl::StrJoin(unmatched, ";"),
              HasSubstr("--test_count has no field;"));
  EXPECT_THAT(absl::StrJoin(unmatched, ";"),
              EndsWith("test_unknown has no flag"));
}

}  // namespace
}  // namespace postcopy
