#include "cmd/control/request_log.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {
namespace {

using Answer = RequestLog::Answer;

class RequestLogTest : public ::testing::Test {
 protected:
  static constexpr size_t kMax = 4;

  static v1::CancelMigrationRequest Cancel(const std::string& migration) {
    v1::CancelMigrationRequest request;
    request.set_migration_id(migration);
    return request;
  }
  // Carries it out if it is new.
  Answer Do(const std::string& id, const std::string& migration = "m") {
    const auto answer = log_.Begin(id, Cancel(migration));
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (*answer == Answer::kNew) log_.End(id, /*done=*/true);
    return *answer;
  }

  RequestLog log_{kMax};
};

TEST_F(RequestLogTest, TheSameAgainIsDone) {
  EXPECT_EQ(Do("a"), Answer::kNew);
  EXPECT_EQ(Do("a"), Answer::kDone);
  EXPECT_EQ(Do("b"), Answer::kNew);
}

TEST_F(RequestLogTest, AnotherContentIsRefused) {
  EXPECT_EQ(Do("a"), Answer::kNew);
  const auto other = log_.Begin("a", Cancel("other"));
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(other.status().message(),
            "request_id \"a\" was used for a different request: choose one for "
            "each request");
  // The fields may be the same; what is asked for is not.
  v1::SwitchOverRequest switch_over;
  switch_over.set_migration_id("m");
  EXPECT_EQ(log_.Begin("a", switch_over).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Do("a"), Answer::kDone);
}

TEST_F(RequestLogTest, WhatFailedIsForgotten) {
  ASSERT_TRUE(log_.Begin("a", Cancel("m")).ok());
  log_.End("a", /*done=*/false);
  EXPECT_EQ(Do("a", "other"), Answer::kNew);
}

// Two tries of one call: one fails, the other does not.
TEST_F(RequestLogTest, TwoUnderWay) {
  EXPECT_EQ(*log_.Begin("a", Cancel("m")), Answer::kNew);
  EXPECT_EQ(*log_.Begin("a", Cancel("m")), Answer::kNew);
  log_.End("a", /*done=*/false);
  EXPECT_FALSE(log_.Begin("a", Cancel("other")).ok()) << "one is under way";
  log_.End("a", /*done=*/true);
  EXPECT_EQ(Do("a"), Answer::kDone);
}

TEST_F(RequestLogTest, RemembersSoManyAndForgetsTheOldest) {
  for (size_t i = 0; i < kMax; ++i)
    EXPECT_EQ(Do(absl::StrCat(i)), Answer::kNew);
  for (size_t i = 0; i < kMax; ++i)
    EXPECT_EQ(Do(absl::StrCat(i)), Answer::kDone);
  EXPECT_EQ(Do("past"), Answer::kNew);
  EXPECT_EQ(Do("1"), Answer::kDone);
  EXPECT_EQ(Do("0"), Answer::kNew) << "forgotten";
}

}  // namespace
}  // namespace postcopy
