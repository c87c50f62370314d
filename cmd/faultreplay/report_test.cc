#include "cmd/faultreplay/report.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "cmd/faultreplay/test_report.h"
#include "gmock/gmock.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const BudgetLine kMet = {.what = "p50", .target = 1.25, .measured = 1.25};
const BudgetLine kNotMet = {
    .what = "rate", .target = 0.8, .at_most = false, .measured = 0.79};

TEST(SummaryTest, MediansOverTheRuns) {
  const BackendSummary summary = Summarize(TestReport().backends[0]);
  EXPECT_EQ(summary.waits, 100);
  // 50 us and 150 us.
  EXPECT_EQ(summary.p50_us, 100);
  EXPECT_EQ(summary.p50_spread, 1);
  EXPECT_EQ(summary.p99_us, 198);
  EXPECT_EQ(summary.max_us, 200);
  EXPECT_EQ(summary.avoided, 7);
  EXPECT_EQ(summary.unused_bytes, 3 * 4096);
  EXPECT_DOUBLE_EQ(summary.stall_sum_ms, 10.1);
  EXPECT_DOUBLE_EQ(summary.stall_any_ms, 10.1);
  EXPECT_DOUBLE_EQ(summary.cpu_seconds_per_gib, 0.001);
}

TEST(SummaryTest, OfNothingIsNothing) {
  const BackendSummary summary = Summarize({.name = "none", .runs = {{}}});
  EXPECT_EQ(summary.p50_us, 0);
  EXPECT_EQ(summary.waits_per_second, 0);
  EXPECT_EQ(summary.cpu_seconds_per_gib, 0);
}

TEST(SummaryTest, TheWorstNoiseCounts) {
  const Noise worst = WorstNoise(TestReport().noise);
  EXPECT_EQ(worst.longest_gap_ns, 12'300);
  EXPECT_EQ(worst.lost, 0.02);
}

TEST(BudgetTest, MetIncludesTheTarget) {
  EXPECT_TRUE(kMet.met());
  EXPECT_FALSE(kNotMet.met());
  const BudgetLine nothing = {.what = "p99", .target = 4};
  EXPECT_FALSE(nothing.met());
  const std::string table = BudgetTable({kMet, kNotMet, nothing});
  EXPECT_THAT(table, AllOf(HasSubstr("1.25  met"), HasSubstr("0.79  NOT MET"),
                           HasSubstr("NOT MEASURED"), Not(HasSubstr("nan"))));
  EXPECT_THAT(ReportsJson({}, {nothing}),
              AllOf(HasSubstr("\"met\":false"), Not(HasSubstr("measured"))));
}

TEST(ReportTest, TheTableHasWhatMatters) {
  const std::string table = ReportTable(TestReport());
  EXPECT_THAT(table, AllOf(HasSubstr("all of it on CPU 0"),
                           HasSubstr("12.3 us, 2.0 %"), HasSubstr("local"),
                           HasSubstr("answering"), HasSubstr("100.0")));
}

TEST(ReportTest, TheJsonIsAnObjectOnOneLine) {
  const std::string json = ReportsJson({TestReport()}, {kMet, kNotMet});
  EXPECT_EQ(std::count(json.begin(), json.end(), '\n'), 1);
  google::protobuf::Struct object;
  ASSERT_TRUE(google::protobuf::util::JsonStringToMessage(json, &object).ok());
  EXPECT_THAT(json, AllOf(HasSubstr("\"fault_latency_ns\":{\"p50\":100000"),
                          HasSubstr("\"target_permille\":800"),
                          HasSubstr("\"met\":false")));
  ASSERT_TRUE(google::protobuf::util::JsonStringToMessage(
                  ReportJson(TestReport()), &object)
                  .ok());
}

TEST(ReportTest, PercentilesAscendToTheLongest) {
  const std::string text = ReportHdr(TestReport());
  EXPECT_THAT(text, AllOf(HasSubstr("# local"), HasSubstr("# service"),
                          HasSubstr("1/(1-Percentile)"),
                          HasSubstr("#[Max =      500.000")));
  double last = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::StartsWith(line, "# ")) last = 0;
    double value;
    const std::vector<absl::string_view> fields =
        absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (fields.size() < 3 || !absl::SimpleAtod(fields[0], &value)) continue;
    EXPECT_GE(value, last) << line;
    last = value;
  }
}

TEST(ReportTest, ThePageIsWholeByItself) {
  const std::string html = ReportsHtml({TestReport(), TestReport()}, {kMet});
  EXPECT_THAT(html, AllOf(HasSubstr("<svg id=\"cdf-0\""),
                          HasSubstr("<svg id=\"timeline-1-1\""),
                          HasSubstr("A &lt;test&gt; &amp; more")));
  for (const char* other :
       {"<script", "http://", "https://", "<link", "src=", "nan", "inf"}) {
    EXPECT_FALSE(absl::StrContains(html, other)) << other;
  }
}

TEST(ReportTest, NothingMeasuredIsNoReasonToFail) {
  ReplayReport report = TestReport();
  report.backends = {{.name = "none", .runs = {{}}}};
  EXPECT_THAT(ReportsHtml({report}, {}), Not(HasSubstr("nan")));
  EXPECT_THAT(ReportHdr(report), HasSubstr("# none"));
  EXPECT_THAT(ReportTable(report), HasSubstr("none"));
}

}  // namespace
}  // namespace postcopy
