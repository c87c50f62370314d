#include "cmd/process/ready_line.h"

#include "gtest/gtest.h"

namespace postcopy {
namespace {

TEST(StringInJsonTest, FindsTheAddress) {
  EXPECT_EQ(
      StringInJson(R"({"a":"1","control_address":"h:1"})", "control_address")
          .value(),
      "h:1");
  EXPECT_FALSE(StringInJson(R"({"a":1})", "a").ok());
  EXPECT_FALSE(StringInJson(R"({"a":"1"})", "b").ok());
}

}  // namespace
}  // namespace postcopy
