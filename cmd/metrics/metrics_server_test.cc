#include "cmd/metrics/metrics_server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "cmd/metrics/http_get.h"

namespace postcopy {
namespace {

TEST(MetricsServerTest, AnswersWithWhatIsCountedAtThatMoment) {
  std::atomic<int> looks{0};
  auto server =
      MetricsServer::Create("127.0.0.1:0", [&looks](MetricFamilies& families) {
        families.Counter("looks_total", "Times looked.", ++looks,
                         {{"quoted", "a\"b\\"}});
      });
  ASSERT_TRUE(server.ok()) << server.status();
  for (const char* line : {"looks_total{quoted=\"a\\\"b\\\\\"} 1\n",
                           "looks_total{quoted=\"a\\\"b\\\\\"} 2\n"}) {
    const auto text =
        HttpGet((*server)->address(), "/metrics", absl::Seconds(10));
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_TRUE(absl::StrContains(*text, "# TYPE looks_total counter\n"));
    EXPECT_TRUE(absl::StrContains(*text, line)) << *text;
  }
}

TEST(MetricsServerTest, ServesNothingElse) {
  auto server = MetricsServer::Create("127.0.0.1:0", [](MetricFamilies&) {});
  ASSERT_TRUE(server.ok()) << server.status();
  for (const char* path : {"/", "/etc/passwd", "/metrics/../etc/passwd"}) {
    const absl::Status status =
        HttpGet((*server)->address(), path, absl::Seconds(10)).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << path << status;
  }
}

TEST(MetricsServerTest, AnAddressThatIsTakenIsSaidSo) {
  auto first = MetricsServer::Create("127.0.0.1:0", [](MetricFamilies&) {});
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status second =
      MetricsServer::Create((*first)->address(), [](MetricFamilies&) {
      }).status();
  EXPECT_TRUE(absl::IsUnavailable(second)) << second;
  EXPECT_TRUE(absl::StrContains(second.message(), (*first)->address()));
}

TEST(MetricsServerTest, AddressesAreHostAndPort) {
  for (const char* good : {"127.0.0.1:0", "[::1]:7402", "localhost:65535"}) {
    EXPECT_TRUE(CheckMetricsAddress(good).ok()) << good;
  }
  for (const char* bad : {"", "7402", ":7402", "h:", "h:65536", "h:-1", "h:1s",
                          "h:1,i:2", "h:1 "}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckMetricsAddress(bad))) << bad;
  }
}

TEST(HttpGetTest, NobodyThere) {
  std::string address;
  {
    auto server = MetricsServer::Create("127.0.0.1:0", [](MetricFamilies&) {});
    ASSERT_TRUE(server.ok()) << server.status();
    address = (*server)->address();
  }
  EXPECT_TRUE(absl::IsUnavailable(
      HttpGet(address, "/metrics", absl::Seconds(10)).status()));
}

TEST(HttpGetTest, TakesAnAnswerAtTheLimitAndNoByteMore) {
  std::atomic<size_t> length{1};
  auto server =
      MetricsServer::Create("127.0.0.1:0", [&](MetricFamilies& families) {
        families.Gauge("a", std::string(length.load(), 'x'), 1);
      });
  ASSERT_TRUE(server.ok()) << server.status();
  const auto get = [&] {
    return HttpGet((*server)->address(), "/metrics", absl::Seconds(30));
  };
  const auto small = get();
  ASSERT_TRUE(small.ok()) << small.status();
  // The server's own metrics are behind ours, and grow with each answer.
  const size_t around = small->size() - 1;
  length = kHttpBodyBytesMax - around - 200;
  EXPECT_TRUE(get().ok());
  length = kHttpBodyBytesMax + 1;
  EXPECT_TRUE(absl::IsResourceExhausted(get().status()));
}

}  // namespace
}  // namespace postcopy
