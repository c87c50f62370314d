#include "cmd/faultreplay/find_program.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

namespace fs = std::filesystem;

class FindProgramTest : public ::testing::Test {
 protected:
  FindProgramTest() : root_(::testing::TempDir() + "/find_program") {
    fs::remove_all(root_);
  }
  ~FindProgramTest() override { fs::remove_all(root_); }

  // Makes a program there.
  void Make(const std::string& path) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << "#!/bin/true\n";
    fs::permissions(root_ / path, fs::perms::owner_all);
  }
  std::string At(const std::string& path) const {
    return fs::weakly_canonical(root_ / path);
  }
  // Where it is found from the program at `own`, or the error.
  std::string Find(const std::string& own) const {
    std::string path;
    const absl::Status status = FindProgram(At(own), "faultd", &path);
    if (!status.ok()) return std::string(status.message());
    return fs::weakly_canonical(path);
  }

  const fs::path root_;
};

TEST_F(FindProgramTest, WhereABuildHasIt) {
  Make("cmd/faultreplay/faultreplay");
  Make("cmd/faultd/faultd");
  EXPECT_EQ(Find("cmd/faultreplay/faultreplay"), At("cmd/faultd/faultd"));
  // Whatever else there is.
  Make("cmd/sbin/faultd");
  EXPECT_EQ(Find("cmd/faultreplay/faultreplay"), At("cmd/faultd/faultd"));
}

TEST_F(FindProgramTest, WhereThePackageHasIt) {
  Make("usr/bin/faultreplay");
  Make("usr/sbin/faultd");
  EXPECT_EQ(Find("usr/bin/faultreplay"), At("usr/sbin/faultd"));
}

TEST_F(FindProgramTest, OneThatIsNowhereIsToldWithItsFlag) {
  Make("usr/bin/faultreplay");
  EXPECT_THAT(Find("usr/bin/faultreplay"), ::testing::HasSubstr("--faultd"));
}

TEST_F(FindProgramTest, TheOneThatIsNamedOrNone) {
  Make("usr/bin/faultreplay");
  Make("usr/sbin/faultd");
  Make("mine");
  std::string path = At("mine");
  EXPECT_TRUE(FindProgram(At("usr/bin/faultreplay"), "faultd", &path).ok());
  EXPECT_EQ(path, At("mine"));
  path = At("gone");
  EXPECT_FALSE(FindProgram(At("usr/bin/faultreplay"), "faultd", &path).ok());
}

}  // namespace
}  // namespace postcopy
