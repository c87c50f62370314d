#include "cmd/faultreplay/backend_spec.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

TEST(BackendSpecTest, AllThatCanBeSaid) {
  const auto specs = ParseBackends(
      "local:delay=5ms,tcp,grpc-echo,grpc-stream,"
      "service:after-precopy:linear:limit=64MiB:delay=1ms,service:idle,"
      "qemu,qemu:preempt:limit=256MiB:delay=2ms");
  ASSERT_TRUE(specs.ok()) << specs.status();
  ASSERT_EQ(specs->size(), 8u);
  EXPECT_EQ((*specs)[0].kind, BackendKind::kLocal);
  EXPECT_EQ((*specs)[0].delay_ns, 5'000'000);
  EXPECT_EQ((*specs)[1].kind, BackendKind::kTcp);
  EXPECT_EQ((*specs)[3].kind, BackendKind::kGrpcStream);
  const BackendSpec& service = (*specs)[4];
  EXPECT_EQ(service.kind, BackendKind::kService);
  EXPECT_TRUE(service.after_precopy);
  EXPECT_EQ(service.pull_order, v1::PULL_ORDER_LINEAR);
  EXPECT_EQ(service.bandwidth, ByteCount(64 << 20));
  EXPECT_EQ(service.name, "service:after-precopy:linear:limit=64MiB:delay=1ms");
  EXPECT_EQ((*specs)[5].pull_order, v1::PULL_ORDER_ADAPTIVE);
  EXPECT_GT((*specs)[5].bandwidth, ByteCount(0));
  EXPECT_EQ((*specs)[6].kind, BackendKind::kQemu);
  EXPECT_FALSE((*specs)[6].preempt);
  EXPECT_EQ((*specs)[6].bandwidth, ByteCount(0));
  EXPECT_TRUE((*specs)[7].preempt);
  EXPECT_EQ((*specs)[7].bandwidth, ByteCount(256 << 20));
  EXPECT_EQ((*specs)[7].delay_ns, 2'000'000);
}

TEST(BackendSpecTest, WhatCannotBeSaidIsNamed) {
  for (const char* text :
       {"", "ours", "local,", "local:idle", "tcp:limit=1MiB", "service:fast",
        "service:limit=1", "service:limit=1048575", "local:delay=-1s",
        "local:delay=11s", "local:delay=soon", "service:preempt", "qemu:idle",
        "qemu:linear", "qemu:limit=1", "tcp:preempt"}) {
    const auto specs = ParseBackends(text);
    EXPECT_EQ(specs.status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
  EXPECT_TRUE(ParseBackends("service:limit=1048576").ok());
  EXPECT_TRUE(ParseBackends("local:delay=10s").ok());
}

TEST(BackendSpecTest, LimitOfBackends) {
  std::string text = "local";
  for (size_t i = 1; i < kBackendsMax; ++i) text += ",local";
  EXPECT_TRUE(ParseBackends(text).ok());
  EXPECT_THAT(std::string(ParseBackends(text + ",tcp").status().message()),
              HasSubstr("at most 8"));
}

}  // namespace
}  // namespace postcopy
