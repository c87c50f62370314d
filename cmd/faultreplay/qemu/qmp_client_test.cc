#include "cmd/faultreplay/qemu/qmp_client.h"

#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cmd/faultreplay/loopback.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kGreeting[] =
    R"({"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7}}}})"
    "\n";
constexpr char kDone[] = "{\"return\":{}}\n";

// QEMU's end of the connection is the test's: what it will say is in the socket
// before it is asked.
class QmpClientTest : public ::testing::Test {
 protected:
  QmpClientTest() {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    qemu_ = UniqueFd(ends[0]);
    client_ = std::make_unique<QmpClient>(UniqueFd(ends[1]));
  }

  void Say(const std::string& text) {
    EXPECT_TRUE(SendAll(qemu_.get(), text.data(), text.size()));
  }
  std::string Heard() {
    std::string text(4096, '\0');
    const ssize_t n =
        ::recv(qemu_.get(), text.data(), text.size(), MSG_DONTWAIT);
    text.resize(static_cast<size_t>(std::max<ssize_t>(n, 0)));
    return text;
  }
  absl::StatusCode CodeOfExecute() {
    return client_->Execute("x", JsonObject(), absl::Seconds(30))
        .status()
        .code();
  }

  UniqueFd qemu_;
  std::unique_ptr<QmpClient> client_;
};

std::string Event(int number) {
  return absl::StrCat(R"({"event":"MIGRATION","data":{"status":"active"},)",
                      R"("timestamp":{"seconds":100,"microseconds":)", number,
                      "}}\n");
}

TEST_F(QmpClientTest, CommandsAndAnswers) {
  Say(kGreeting);
  Say(kDone);
  ASSERT_TRUE(client_->Negotiate(absl::Seconds(30)).ok());
  EXPECT_THAT(Heard(), HasSubstr(R"({"execute":"qmp_capabilities")"));
  Say(R"({"return":{"status":"running","n":5}})"
      "\n");
  const auto answer = client_->Execute(
      "query", JsonObject().Add("x", uint64_t{1} << 40), absl::Seconds(30));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(QmpString(answer->struct_value(), "status"), "running");
  EXPECT_EQ(QmpNumber(answer->struct_value(), "n"), 5);
  EXPECT_EQ(QmpString(answer->struct_value(), "nothing"), "");
  EXPECT_EQ(QmpNumber(answer->struct_value(), "nothing"), 0);
  EXPECT_EQ(Heard(), R"({"execute":"query","arguments":{"x":1099511627776}})"
                     "\n");
}

TEST_F(QmpClientTest, EventsBetweenAnswersAreKept) {
  Say(Event(1) + Event(2) + kDone + Event(3));
  ASSERT_TRUE(client_->Execute("x", JsonObject(), absl::Seconds(30)).ok());
  for (int i = 1; i <= 3; ++i) {
    const auto event = client_->NextEvent(absl::Seconds(30));
    ASSERT_TRUE(event.ok()) << event.status();
    EXPECT_EQ(event->name, "MIGRATION");
    EXPECT_EQ(QmpString(event->data, "status"), "active");
    EXPECT_EQ(event->time, absl::FromUnixMicros(100'000'000 + i));
  }
  EXPECT_EQ(client_->NextEvent(absl::ZeroDuration()).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  // Which harms nothing.
  const std::string event = Event(4);
  Say(event.substr(0, 10));
  EXPECT_EQ(client_->NextEvent(absl::ZeroDuration()).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  Say(event.substr(10));
  EXPECT_TRUE(client_->NextEvent(absl::Seconds(30)).ok());
}

TEST_F(QmpClientTest, ARefusalIsToldInQemusWords) {
  Say(R"({"error":{"class":"GenericError","desc":"no such thing"}})"
      "\n");
  const absl::Status status =
      client_->Execute("migrate", JsonObject(), absl::Seconds(30)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("migrate"), HasSubstr("no such thing")));
}

TEST_F(QmpClientTest, SilenceHasADeadline) {
  EXPECT_EQ(client_->Execute("x", JsonObject(), absl::Milliseconds(1))
                .status()
                .code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(QmpClientTest, AQemuThatHasGoneIsNoticed) {
  qemu_.Reset();
  EXPECT_EQ(CodeOfExecute(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(client_->NextEvent(absl::Seconds(30)).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(client_->Negotiate(absl::Seconds(30)).code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(QmpClientTest, WhatIsNoQmpIsToldSo) {
  Say("SSH-2.0\n");
  EXPECT_EQ(client_->Negotiate(absl::Seconds(30)).code(),
            absl::StatusCode::kInternal);
  Say("{}\n");
  EXPECT_EQ(client_->Negotiate(absl::Seconds(30)).code(),
            absl::StatusCode::kInternal);
  Say("{\"neither\":1}\n");
  EXPECT_EQ(CodeOfExecute(), absl::StatusCode::kInternal);
}

TEST_F(QmpClientTest, LimitOfALine) {
  // What the socket does not take at once, a thread sends.
  const auto say = [this](size_t bytes) {
    std::string line = R"({"return":{"x":")";
    constexpr char kEnd[] = "\"}}";
    line.append(bytes - line.size() - (sizeof(kEnd) - 1), 'x');
    std::thread speaker([this, line = line + kEnd + "\n"] {
      SendAll(qemu_.get(), line.data(), line.size());
    });
    const absl::StatusCode code = CodeOfExecute();
    // Who has not read all leaves the speaker waiting.
    if (code != absl::StatusCode::kOk) client_.reset();
    speaker.join();
    return code;
  };
  EXPECT_EQ(say(kQmpLineBytesMax), absl::StatusCode::kOk);
  EXPECT_EQ(say(kQmpLineBytesMax + 1), absl::StatusCode::kResourceExhausted);
}

TEST_F(QmpClientTest, LimitOfEvents) {
  const auto say = [this](size_t events) {
    std::string text;
    for (size_t i = 0; i < events; ++i) text += Event(static_cast<int>(i));
    std::thread speaker([this, text = text + kDone] {
      SendAll(qemu_.get(), text.data(), text.size());
    });
    const absl::StatusCode code = CodeOfExecute();
    if (code != absl::StatusCode::kOk) client_.reset();
    speaker.join();
    return code;
  };
  EXPECT_EQ(say(kQmpEventsMax), absl::StatusCode::kOk);
  EXPECT_EQ(say(1), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace postcopy
