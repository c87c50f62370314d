#include "cmd/daemon/serve_metrics.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "cmd/log/daemon_log.h"
#include "cmd/metrics/http_get.h"

namespace postcopy {
namespace {

TEST(ServeMetricsTest, AddsWhatTheProcessAndItsLogCount) {
  DaemonLog log([](const LogRecord&) {}, LogSeverity::kInfo);
  WriteTo(&log, LogSeverity::kInfo, "one line");
  const auto server = ServeMetrics(
      "127.0.0.1:0", &log,
      [](MetricFamilies& families) { families.Gauge("mine", "Mine.", 7); });
  ASSERT_NE(server, nullptr);
  const auto text = HttpGet(server->address(), "/metrics", absl::Seconds(10));
  ASSERT_TRUE(text.ok()) << text.status();
  for (const char* line :
       {"\nmine 7\n", "\npostcopy_log_lines_total 1\n",
        "\npostcopy_log_lines_dropped_total 0\n", "\nprocess_open_fds "}) {
    EXPECT_TRUE(absl::StrContains(*text, line)) << line << *text;
  }
}

TEST(ServeMetricsTest, NoAddressNoMetrics) {
  DaemonLog log([](const LogRecord&) {}, LogSeverity::kInfo);
  EXPECT_EQ(ServeMetrics("", &log, [](MetricFamilies&) {}), nullptr);
}

// A daemon that guests wait for starts all the same, and says what is wrong.
TEST(ServeMetricsTest, APortThatIsTakenIsAnErrorInTheLogAndNoMore) {
  std::vector<LogRecord> records;
  {
    DaemonLog log([&](const LogRecord& record) { records.push_back(record); },
                  LogSeverity::kInfo);
    const auto first =
        ServeMetrics("127.0.0.1:0", &log, [](MetricFamilies&) {});
    ASSERT_NE(first, nullptr);
    EXPECT_EQ(ServeMetrics(first->address(), &log, [](MetricFamilies&) {}),
              nullptr);
  }
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].severity, LogSeverity::kError);
  EXPECT_TRUE(absl::StrContains(records[0].sentence, "cannot listen"));
}

}  // namespace
}  // namespace postcopy
