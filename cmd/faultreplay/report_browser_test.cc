// The report as a real browser shows it.
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/report.h"
#include "cmd/faultreplay/test_report.h"
#include "cmd/process/child_process.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr char kBrowser[] = "/usr/bin/chromium";
constexpr absl::Duration kPatience = absl::Minutes(2);

std::string Content(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

class ReportBrowserTest : public ::testing::Test {
 protected:
  ReportBrowserTest() {
    std::string path = "/tmp/report-browser-XXXXXX";
    directory_ = ::mkdtemp(path.data());
    ::setenv("HOME", directory_.c_str(), 1);
  }
  ~ReportBrowserTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  void SetUp() override {
    if (!std::filesystem::exists(kBrowser)) {
      GTEST_SKIP() << kBrowser << " is missing: install Debian's chromium";
    }
    std::ofstream(directory_ + "/report.html")
        << ReportsHtml({TestReport()}, {});
  }

  // What the browser writes to stdout with `flag`.
  std::string Browse(const std::string& flag) {
    ChildOptions options;
    options.argv = {kBrowser,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                    "--user-data-dir=" + directory_ + "/profile",
                    "--window-size=1000,1400",
                    flag,
                    "file://" + directory_ + "/report.html"};
    options.stdout_path = directory_ + "/stdout";
    options.stderr_path = directory_ + "/stderr";
    auto browser = ChildProcess::Start(options);
    EXPECT_TRUE(browser.ok()) << browser.status();
    const auto ended = browser->Wait(kPatience);
    EXPECT_TRUE(ended.ok() && ended->ok())
        << TailOfFile(options.stderr_path, 20);
    return Content(options.stdout_path);
  }

  std::string directory_;
};

TEST_F(ReportBrowserTest, HasAllItsPlotsInTheDocument) {
  const std::string dom = Browse("--dump-dom");
  for (const char* id :
       {"cdf-0", "bars-0", "stages-0", "timeline-0-0", "timeline-0-1"}) {
    EXPECT_TRUE(absl::StrContains(dom, absl::StrCat("<svg id=\"", id, "\"")))
        << id;
  }
  // The parser has not moved or closed anything by itself.
  EXPECT_TRUE(absl::StrContains(dom, "<polyline"));
  EXPECT_TRUE(absl::StrContains(dom, "A &lt;test&gt; &amp; more"));
}

TEST_F(ReportBrowserTest, IsDrawn) {
  const std::string path = directory_ + "/shot.png";
  Browse("--screenshot=" + path);
  const std::string png = Content(path);
  ASSERT_GT(png.size(), 24u);
  EXPECT_EQ(png.substr(1, 3), "PNG");
  // A page that shows nothing compresses to a few KiB.
  EXPECT_GT(png.size(), 20'000u);
  // To be looked at; Bazel keeps it as the test's output.
  if (const char* kept = ::getenv("TEST_UNDECLARED_OUTPUTS_DIR")) {
    std::ofstream(absl::StrCat(kept, "/report.png"), std::ios::binary) << png;
  }
}

}  // namespace
}  // namespace postcopy
