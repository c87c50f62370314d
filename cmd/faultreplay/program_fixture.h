// faultreplay as its user calls it.
#ifndef CMD_FAULTREPLAY_PROGRAM_FIXTURE_H_
#define CMD_FAULTREPLAY_PROGRAM_FIXTURE_H_

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/process/child_process.h"
#include "gtest/gtest.h"

namespace postcopy {

class FaultReplayTest : public ::testing::Test {
 protected:
  FaultReplayTest() {
    std::string path = "/tmp/faultreplay-test-XXXXXX";
    directory_ = ::mkdtemp(path.data());
  }
  ~FaultReplayTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  absl::StatusOr<ChildProcess> Start(
      const std::vector<std::string>& arguments) const {
    ChildOptions options;
    options.argv = {"cmd/faultreplay/faultreplay"};
    options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
    options.stdout_path = directory_ + "/out";
    options.stderr_path = directory_ + "/err";
    return ChildProcess::Start(options);
  }

  // The exit code; what it wrote is in out_ and err_.
  int Run(const std::vector<std::string>& arguments) {
    auto child = Start(arguments);
    EXPECT_TRUE(child.ok()) << child.status();
    const auto ended = child->Wait(absl::Minutes(2));
    EXPECT_TRUE(ended.ok()) << ended.status();
    out_ = Content("out");
    err_ = Content("err");
    return ended.ok() ? ended->code : -1;
  }

  std::string Content(const std::string& name) const {
    std::stringstream text;
    text << std::ifstream(directory_ + "/" + name, std::ios::binary).rdbuf();
    return text.str();
  }
  std::string At(const std::string& name) const {
    return directory_ + "/" + name;
  }

  std::string directory_;
  std::string out_;
  std::string err_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_PROGRAM_FIXTURE_H_
