// What the demo does when the programs it runs let it down; they are shell
// scripts here. The whole run is a system test.

#include "cmd/demo/demo.h"

#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Makes say TEXT write a line to the descriptor of --ready_fd.
constexpr char kPrologue[] =
    "#!/bin/sh\n"
    "for a in \"$@\"; do case $a in --ready_fd=*) r=${a#*=};; esac; done\n"
    "say() { echo \"$1\" > /proc/self/fd/$r; }\n";
constexpr char kReadyDaemon[] =
    "say '{\"control_address\":\"127.0.0.1:1\","
    "\"data_address\":\"127.0.0.1:1\"}'; exec sleep 60";

class DemoTest : public ::testing::Test {
 protected:
  DemoTest() {
    std::string path = std::string(::testing::TempDir()) + "/demo-XXXXXX";
    directory_ = ::mkdtemp(path.data());
    options_.programs.pageserverd = Script("pageserverd", kReadyDaemon);
    options_.programs.faultd = Script("faultd", kReadyDaemon);
    options_.programs.demovm =
        Script("demovm", "say '{\"attached\":\"true\"}'; exec sleep 60");
  }

  std::string Script(const std::string& name, const std::string& body) {
    std::string path = directory_ + "/" + name;
    std::ofstream(path) << kPrologue << body << "\n";
    ::chmod(path.c_str(), 0755);
    return path;
  }

  absl::Status Run(bool interrupted = false) {
    std::ostringstream out, err;
    absl::Status status = RunDemo(
        options_, {.out = &out, .err = &err, .interrupted = [interrupted] {
                     return interrupted;
                   }});
    out_ = out.str();
    err_ = err.str();
    RemoveLogs();
    return status;
  }

  // A demo that failed leaves its directory and says where.
  void RemoveLogs() {
    const std::string mark = "demo: logs are in ";
    size_t start = err_.find(mark);
    if (start == std::string::npos) return;
    start += mark.size();
    logs_ = err_.substr(start, err_.find('\n', start) - start);
    EXPECT_THAT(logs_, HasSubstr("/tmp/postcopy-demo-"));
    EXPECT_TRUE(std::filesystem::exists(logs_));
    std::error_code ignored;
    std::filesystem::remove_all(logs_, ignored);
  }

  std::string directory_;
  DemoOptions options_;
  std::string out_;
  std::string err_;
  std::string logs_;
};

TEST_F(DemoTest, ADaemonThatDoesNotStartIsShown) {
  Script("faultd", "echo no userfaultfd for you >&2; exit 3");
  absl::Status status = Run();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("faultd"));
  EXPECT_THAT(err_, AllOf(HasSubstr("no userfaultfd for you"),
                          HasSubstr("faultd.log")));
  EXPECT_THAT(out_, IsEmpty());
}

TEST_F(DemoTest, ADaemonThatSpeaksNonsenseIsShown) {
  Script("pageserverd", "say hello; exec sleep 60");
  absl::Status status = Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("hello"));
}

TEST_F(DemoTest, AVmmThatDoesNotStartIsShown) {
  Script("demovm", "echo no memory >&2; exit 1");
  EXPECT_FALSE(Run().ok());
  EXPECT_THAT(err_, HasSubstr("no memory"));
}

TEST_F(DemoTest, AProgramThatIsNotThereIsNamed) {
  options_.programs.demovm = directory_ + "/nothing";
  absl::Status status = Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nothing"));
}

TEST_F(DemoTest, DaemonsThatCannotBeReachedEndIt) {
  absl::Status status = Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("nothing has been started"));
  EXPECT_THAT(out_, IsEmpty());
}

TEST_F(DemoTest, AnInterruptEndsIt) {
  absl::Status status = Run(/*interrupted=*/true);
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace postcopy
