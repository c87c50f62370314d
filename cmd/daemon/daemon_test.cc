#include "cmd/daemon/daemon.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

namespace postcopy {
namespace {

TEST(TellReadyTest, WritesOneLineOfJsonAndCloses) {
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  ASSERT_TRUE(TellReady(fds[1], {{"control_address", "127.0.0.1:1"},
                                 {"data_address", "127.0.0.1:2"}})
                  .ok());
  std::string text(256, '\0');
  text.resize(static_cast<size_t>(::read(fds[0], text.data(), text.size())));
  EXPECT_EQ(text,
            "{\"control_address\":\"127.0.0.1:1\","
            "\"data_address\":\"127.0.0.1:2\"}\n");
  char none = 0;
  EXPECT_EQ(::read(fds[0], &none, 1), 0) << "closed";
  ::close(fds[0]);
}

TEST(TellReadyTest, NobodyToTellIsFine) {
  EXPECT_TRUE(TellReady(-1, {{"a", "b"}}).ok());
}

TEST(TellReadyTest, NamesTheDescriptorThatIsNone) {
  const absl::Status status = TellReady(1 << 20, {{"a", "b"}});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("--ready_fd=1048576"),
            absl::string_view::npos);
}

// Writes to a file that may not grow; ends the process with errno.
[[noreturn]] void WriteBeyondTheLimit(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  const rlimit none = {.rlim_cur = 0, .rlim_max = 0};
  if (fd < 0 || ::setrlimit(RLIMIT_FSIZE, &none) != 0) ::_exit(0);
  ::_exit(::write(fd, "x", 1) == 1 ? 0 : errno);
}

TEST(BlockSignalsTest, AFileThatMayNotGrowDoesNotEndTheDaemon) {
  const std::string path = testing::TempDir() + "/full";
  EXPECT_EXIT(
      {
        BlockDaemonSignals();
        WriteBeyondTheLimit(path);
      },
      testing::ExitedWithCode(EFBIG), "");
  EXPECT_EXIT(
      {
        BlockEndSignals();
        WriteBeyondTheLimit(path);
      },
      testing::ExitedWithCode(EFBIG), "");
  ::unlink(path.c_str());
}

TEST(ParseUidsTest, ReadsNumbers) {
  EXPECT_EQ(*ParseUids(""), std::vector<unsigned>());
  EXPECT_EQ(*ParseUids("0,4294967295"),
            (std::vector<unsigned>{0, 4294967295u}));
}

TEST(ParseUidsTest, NamesWhatIsNone) {
  for (const char* text : {"root", "-1", "4294967296", "1;2"}) {
    EXPECT_EQ(ParseUids(text).status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
  EXPECT_EQ(ParseUids("0,root").status().message(),
            "\"root\" is no user id: give numbers, separated by commas");
}

TEST(CheckTimeoutTest, TakesWhatHasAnEnd) {
  EXPECT_TRUE(CheckTimeout(absl::Nanoseconds(1)).ok());
  for (const absl::Duration none :
       {absl::ZeroDuration(), -absl::Seconds(1), absl::InfiniteDuration()}) {
    EXPECT_EQ(CheckTimeout(none).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(CheckTimeoutTest, ADrainMayTakeNoTimeOrForEver) {
  EXPECT_TRUE(CheckDrainTimeout(absl::ZeroDuration()).ok());
  EXPECT_TRUE(CheckDrainTimeout(absl::InfiniteDuration()).ok());
  EXPECT_EQ(CheckDrainTimeout(-absl::Seconds(1)).message(),
            "must be 0, a time such as 10m, or inf, not -1s");
}

}  // namespace
}  // namespace postcopy
