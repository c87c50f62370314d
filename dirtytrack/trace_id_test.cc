#include "dirtytrack/trace_id.h"

#include <gtest/gtest.h>

namespace postcopy {
namespace {

TEST(TraceIdTest, IsWhatW3cSays) {
  EXPECT_TRUE(IsTraceId("4bf92f3577b34da6a3ce929d0e0e4736"));
  EXPECT_TRUE(IsTraceId("00000000000000000000000000000001"));
  EXPECT_FALSE(IsTraceId("")) << "empty";
  EXPECT_FALSE(IsTraceId("4bf92f3577b34da6a3ce929d0e0e473")) << "one too few";
  EXPECT_FALSE(IsTraceId("4bf92f3577b34da6a3ce929d0e0e47361")) << "one more";
  EXPECT_FALSE(IsTraceId("4BF92F3577B34DA6A3CE929D0E0E4736")) << "upper case";
  EXPECT_FALSE(IsTraceId("4bf92f3577b34da6a3ce929d0e0e473g")) << "no digit";
  EXPECT_FALSE(IsTraceId("00000000000000000000000000000000")) << "invalid id";
}

TEST(TraceIdTest, NewOnesAreValidAndDiffer) {
  const std::string one = NewTraceId();
  EXPECT_TRUE(IsTraceId(one)) << one;
  EXPECT_NE(one, NewTraceId());
}

}  // namespace
}  // namespace postcopy
