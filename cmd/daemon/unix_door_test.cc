#include "cmd/daemon/unix_door.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dirtytrack/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class UnixDoorTest : public ::testing::Test {
 protected:
  UnixDoorTest() {
    directory_ = "/tmp/postcopy-door-XXXXXX";
    EXPECT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  ~UnixDoorTest() override {
    door_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  void Open(std::vector<uid_t> allowed) {
    auto door = UnixDoor::Create({.path = directory_ + "/sock",
                                  .allowed_uids = std::move(allowed),
                                  .let_in =
                                      [this](UniqueFd fd) {
                                        std::lock_guard lock(mutex_);
                                        inside_.push_back(std::move(fd));
                                        changed_.notify_all();
                                      },
                                  .log =
                                      [this](const std::string& sentence) {
                                        std::lock_guard lock(mutex_);
                                        said_.push_back(sentence);
                                      }});
    ASSERT_TRUE(door.ok()) << door.status();
    door_ = *std::move(door);
  }

  UniqueFd Knock() const {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, (directory_ + "/sock").c_str());  // NOLINT
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address),
                        sizeof(address)),
              0);
    return fd;
  }

  std::string directory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<UniqueFd> inside_;
  std::vector<std::string> said_;
  std::unique_ptr<UnixDoor> door_;
};

TEST_F(UnixDoorTest, LetsOurOwnUserIn) {
  Open({});
  const UniqueFd outside = Knock();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !inside_.empty(); });
  ASSERT_EQ(::write(inside_[0].get(), "x", 1), 1);
  char got = 0;
  EXPECT_EQ(::read(outside.get(), &got, 1), 1);
  EXPECT_EQ(got, 'x');
}

TEST_F(UnixDoorTest, AUserThatIsNotAllowedGetsNothing) {
  Open({::geteuid() + 1});
  for (int i = 0; i < 3; ++i) {
    const UniqueFd outside = Knock();
    char none = 0;
    EXPECT_EQ(::read(outside.get(), &none, 1), 0) << "closed";
  }
  std::lock_guard lock(mutex_);
  EXPECT_TRUE(inside_.empty());
  // However often it comes, one sentence in a second.
  ASSERT_FALSE(said_.empty());
  EXPECT_LT(said_.size(), 3u);
  EXPECT_THAT(said_[0],
              AllOf(HasSubstr(absl::StrCat("user ", ::geteuid(),
                                           " may not use the control plane")),
                    HasSubstr(directory_ + "/sock")));
}

TEST_F(UnixDoorTest, StopsWhenToldAndRemovesTheSocket) {
  Open({});
  door_->Stop();
  door_->Stop();
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/sock"));
}

TEST_F(UnixDoorTest, SaysWhereItCannotListen) {
  const absl::Status status =
      UnixDoor::Create(
          {.path = directory_ + "/none/sock", .let_in = [](UniqueFd) {}})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/none/sock"));
}

}  // namespace
}  // namespace postcopy
