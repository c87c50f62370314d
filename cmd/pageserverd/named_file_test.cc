#include "cmd/pageserverd/named_file.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

TEST(NamedFileTest, ANameAndItsFile) {
  const auto files = ParseNamedFiles({"web=/a/web.mem", "db=/b/x=y"});
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(*files,
            (std::vector<NamedFile>{{"web", "/a/web.mem"}, {"db", "/b/x=y"}}));
  EXPECT_TRUE(ParseNamedFiles({})->empty());
}

TEST(NamedFileTest, WhatIsNoneIsNamed) {
  for (const char* text : {"", "web", "=/a", "web="}) {
    const auto files = ParseNamedFiles({"ok=/a", text});
    ASSERT_TRUE(absl::IsInvalidArgument(files.status())) << text;
    EXPECT_EQ(files.status().message(),
              "\"" + std::string(text) + "\" is not NAME=FILE");
  }
}

}  // namespace
}  // namespace postcopy
