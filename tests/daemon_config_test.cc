// The daemons' configuration as an operator meets it: the real programs with
// the files of the package.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "cmd/process/child_process.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr absl::Duration kPatience = absl::Seconds(60);

std::string Content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Outcome {
  int code = -1;
  std::string out;
  std::string err;
};

Outcome RunDaemon(const std::string& daemon,
                  std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(),
                   absl::StrCat("cmd/", daemon, "/", daemon));
  const std::string out = ::testing::TempDir() + "/out";
  const std::string err = ::testing::TempDir() + "/err";
  auto child = ChildProcess::Start(
      {.argv = arguments, .stdout_path = out, .stderr_path = err});
  EXPECT_TRUE(child.ok()) << child.status();
  if (!child.ok()) return {};
  const auto status = child->Wait(kPatience);
  EXPECT_TRUE(status.ok()) << status.status();
  return {status.ok() ? status->code : -1, Content(out), Content(err)};
}

// Param: a daemon's name.
class DaemonConfigTest : public ::testing::TestWithParam<const char*> {
 protected:
  Outcome Run(std::vector<std::string> arguments) const {
    return RunDaemon(GetParam(), std::move(arguments));
  }

  std::string Write(const std::string& text) const {
    std::string path = ::testing::TempDir() + "/daemon.conf";
    std::ofstream(path) << text;
    return path;
  }

  std::string Packaged() const {
    return absl::StrCat("packaging/config/", GetParam(), ".conf");
  }
};

INSTANTIATE_TEST_SUITE_P(Daemons, DaemonConfigTest,
                         ::testing::Values("faultd", "pageserverd"),
                         [](const auto& info) { return info.param; });

// Who adds a flag and no field, or a field and no flag, learns it here.
TEST_P(DaemonConfigTest, EveryFlagHasAField) {
  const Outcome outcome =
      Run({"--check_config", "--insecure_control", "--insecure_data"});
  EXPECT_EQ(outcome.out, "OK\n") << outcome.err;
  EXPECT_EQ(outcome.code, 0);
}

// Who adds a field and does not show it in the packaged file, here.
TEST_P(DaemonConfigTest, ThePackagedFileShowsEveryFieldWithItsDefault) {
  const std::string packaged = Content(Packaged());
  std::string shown;
  for (absl::string_view line : absl::StrSplit(packaged, '\n')) {
    if (absl::StartsWith(line, "# ") || line == "#") continue;
    absl::ConsumePrefix(&line, "#");
    absl::StrAppend(&shown, line, "\n");
  }
  const Outcome defaults = Run({"--print_config"});
  const Outcome all =
      Run({absl::StrCat("--config=", Write(shown)), "--print_config"});
  EXPECT_EQ(all.code, 0) << all.err;
  EXPECT_EQ(all.out, defaults.out);
  for (absl::string_view line : absl::StrSplit(defaults.out, '\n')) {
    EXPECT_THAT(shown, HasSubstr(std::string(line))) << "not in the file";
  }
  const Outcome as_it_is =
      Run({absl::StrCat("--config=", Packaged()), "--print_config"});
  EXPECT_EQ(as_it_is.out, defaults.out) << "nothing is set in it";
}

TEST_P(DaemonConfigTest, FlagsOverrideTheFile) {
  const std::string file = Write("vms_max: 5\nvmm_uids: [1, 2]\n");
  const Outcome outcome =
      Run({absl::StrCat("--config=", file), "--vms_max=6", "--print_config"});
  EXPECT_THAT(outcome.out, HasSubstr("vms_max: 6\n")) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("vmm_uids: 1\n"));
}

TEST_P(DaemonConfigTest, AMistakeIsToldWithItsPlaceAndCode2) {
  for (const char* arguments : {"--check_config", "--print_config", ""}) {
    const std::string file = Write("\n vms_min: 3\n");
    std::vector<std::string> argv = {absl::StrCat("--config=", file)};
    if (*arguments != '\0') argv.emplace_back(arguments);
    const Outcome outcome = Run(argv);
    EXPECT_EQ(outcome.code, 2);
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, HasSubstr(absl::StrCat(file, ":2:")));
  }
  for (const char* text :
       {"vms_max: 0", "vms_max: 257", "reconnect_timeout: \"0\"",
        "reconnect_timeout: \"inf\"", "drain_timeout: \"-1s\"",
        "vmm_uids: [-1]"}) {
    const std::string file = Write(text);
    const Outcome outcome =
        Run({absl::StrCat("--config=", file), "--check_config",
             "--insecure_control", "--insecure_data"});
    EXPECT_EQ(outcome.code, 2) << text;
    EXPECT_THAT(outcome.err, HasSubstr(absl::StrCat(file, ":1:"))) << text;
  }
}

// A unit that is enabled as it was installed would be started every second.
TEST_P(DaemonConfigTest, WhatCannotWorkIsToldAndEndsWithCode2) {
  const std::string packaged = absl::StrCat("--config=", Packaged());
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{packaged}, {packaged, "--check_config"}}) {
    const Outcome outcome = Run(arguments);
    EXPECT_EQ(outcome.code, 2);
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err,
                AllOf(StartsWith(absl::StrCat("error: ", Packaged(), ": ")),
                      HasSubstr("would be plaintext"), HasSubstr("--tls_dir"),
                      HasSubstr("--insecure_control")));
  }
  const Outcome outcome = Run({"--tls_dir=/somewhere", "--insecure_control",
                               "--control_peers=orchestrator"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("--control_peers names certificates"));
}

// What may come later is tried again: not code 2.
TEST_P(DaemonConfigTest, CertificatesThatAreNotThereYetEndItWithCode1) {
  const Outcome outcome = Run({"--tls_dir=/nowhere"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("/nowhere"));
}

TEST(FaultdConfigTest, ASnapshotIsAFileOrAnotherHosts) {
  const auto error_of = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--check_config", "--insecure_control",
                                       "--insecure_data"});
    return RunDaemon("faultd", std::move(arguments)).err;
  };
  EXPECT_EQ(error_of({"--snapshot=/a"}), "");
  EXPECT_EQ(error_of({"--snapshot_source=h:1", "--snapshot_name=a"}), "");
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"--snapshot_source=h:1"},
        {"--snapshot_name=a"},
        {"--snapshot=/a", "--snapshot_name=a"},
        {"--snapshot=/a", "--snapshot_source=h:1"},
        {"--snapshot=/a", "--snapshot_source=h:1", "--snapshot_name=a"}}) {
    EXPECT_THAT(error_of(arguments), HasSubstr("give either --snapshot"))
        << absl::StrJoin(arguments, " ");
  }
}

}  // namespace
}  // namespace postcopy
