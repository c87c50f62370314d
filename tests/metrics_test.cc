// The metrics of the real daemons, read by real tools: promtool, and a
// Prometheus server that scrapes them and evaluates the alerts.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cmd/metrics/http_get.h"
#include "cmd/process/child_process.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

constexpr char kPromtool[] = "/usr/bin/promtool";
constexpr char kPrometheus[] = "/usr/bin/prometheus";
constexpr absl::Duration kPatience = absl::Minutes(1);

#define ASSERT_OK(expression)                        \
  do {                                               \
    const absl::Status& status_ = (expression);      \
    ASSERT_TRUE(status_.ok()) << status_.ToString(); \
  } while (false)

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

// The value of a string in the one line that a daemon says when it is ready.
std::string StringIn(const std::string& json, const std::string& key) {
  std::smatch match;
  return std::regex_search(json, match,
                           std::regex("\"" + key + "\":\"([^\"]*)\""))
             ? match[1]
             : std::string();
}

// A port of loopback that was free a moment ago.
int FreePort() {
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  // The casts are how sockets' addresses are passed.
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(::bind(fd.get(), generic, length), 0);
  EXPECT_EQ(::getsockname(fd.get(), generic, &length), 0);
  return ntohs(address.sin_port);
}

// Names of metrics, without what a histogram or summary appends to its own.
std::set<std::string> NamesIn(const std::string& text) {
  static const std::regex name("\\b(postcopy|process|exposer)_[a-z0-9_]+");
  std::set<std::string> names;
  for (auto it = std::sregex_iterator(text.begin(), text.end(), name);
       it != std::sregex_iterator(); ++it) {
    names.insert(it->str());
  }
  return names;
}

// The daemons, as an operator starts them, and what they export.
class MetricsTest : public ::testing::Test {
 protected:
  MetricsTest() {
    char path[] = "/tmp/postcopy-metrics-XXXXXX";
    directory_ = ::mkdtemp(path);
  }
  ~MetricsTest() override {
    source_.reset();
    destination_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(
        Start("pageserverd",
              {"--control_address=127.0.0.1:0", "--data_address=127.0.0.1:0"},
              source_, source_metrics_));
    // With VMs of a snapshot, whose metrics have a role of their own.
    WriteFile(In("memory"), std::string(4096, 'x'));
    ASSERT_NO_FATAL_FAILURE(
        Start("faultd",
              {"--control_address=127.0.0.1:0", "--snapshot=" + In("memory"),
               "--firecracker_socket=" + In("firecracker.sock"),
               "--trace_dir=" + directory_},
              destination_, destination_metrics_));
  }

  std::string In(const std::string& name) const {
    return directory_ + "/" + name;
  }

  void Start(const std::string& name, std::vector<std::string> flags,
             std::optional<ChildProcess>& child, std::string& metrics) {
    std::vector<std::string> argv = {absl::StrCat("cmd/", name, "/", name)};
    argv.insert(argv.end(), flags.begin(), flags.end());
    argv.push_back("--metrics_address=127.0.0.1:0");
    argv.push_back("--insecure_control");
    argv.push_back("--insecure_data");
    argv.push_back("--vmm_socket=" + In(name + ".sock"));
    auto started = ChildProcess::Start({.argv = argv,
                                        .stderr_path = In(name + ".log"),
                                        .pipe_flags = {"--ready_fd"}});
    ASSERT_OK(started.status());
    child = *std::move(started);
    const auto ready = child->ReadLine("--ready_fd", kPatience);
    ASSERT_TRUE(ready.ok())
        << ready.status() << TailOfFile(In(name + ".log"), 20);
    metrics = StringIn(*ready, "metrics_address");
    ASSERT_NE(metrics, "") << *ready;
  }

  std::string Scrape(const std::string& address) {
    const auto text = HttpGet(address, "/metrics", kPatience);
    EXPECT_TRUE(text.ok()) << text.status();
    return text.ok() ? *text : "";
  }

  // The names that both export.
  std::set<std::string> ExportedNames() {
    std::set<std::string> names;
    // The library counts a scrape when it is over.
    for (int i = 0; i < 2; ++i) {
      for (const std::string& address :
           {source_metrics_, destination_metrics_}) {
        for (absl::string_view line : absl::StrSplit(Scrape(address), '\n')) {
          if (!absl::ConsumePrefix(&line, "# TYPE ")) continue;
          names.emplace(line.substr(0, line.find(' ')));
        }
      }
    }
    return names;
  }

  // Runs a command line; the test fails with what it says if it does.
  void Run(const std::string& command) {
    auto child = ChildProcess::Start({.argv = {"/bin/sh", "-c", command},
                                      .stdout_path = In("command.log"),
                                      .stderr_path = In("command.log")});
    ASSERT_OK(child.status());
    const auto end = child->Wait(kPatience);
    ASSERT_OK(end.status());
    EXPECT_TRUE(end->ok()) << command << ": " << end->ToString() << "\n"
                           << TailOfFile(In("command.log"), 50);
  }

  std::string directory_;
  std::optional<ChildProcess> source_;
  std::optional<ChildProcess> destination_;
  std::string source_metrics_;
  std::string destination_metrics_;
};

TEST_F(MetricsTest, EachHasItsRowInTheDocumentationAndNoneIsMadeUp) {
  std::set<std::string> rows;
  const std::string page = ReadFile("docs/metrics.md");
  for (absl::string_view line : absl::StrSplit(page, '\n')) {
    if (!absl::ConsumePrefix(&line, "| `")) continue;
    rows.emplace(line.substr(0, line.find('`')));
  }
  EXPECT_EQ(rows, ExportedNames());
}

TEST_F(MetricsTest, DashboardAndAlertsNameOnlyWhatThereIs) {
  const std::set<std::string> exported = ExportedNames();
  for (const char* path :
       {"packaging/grafana/postcopy.json", "packaging/prometheus/alerts.yml"}) {
    const std::set<std::string> named = NamesIn(ReadFile(path));
    EXPECT_GT(named.size(), 5u) << path;
    for (const std::string& name : named) {
      bool known = exported.count(name) > 0;
      for (const char* suffix : {"_bucket", "_sum", "_count"}) {
        known = known ||
                (absl::EndsWith(name, suffix) &&
                 exported.count(std::string(absl::StripSuffix(name, suffix))));
      }
      EXPECT_TRUE(known) << path << " names " << name;
    }
  }
}

TEST_F(MetricsTest, PromtoolFindsNothingWrong) {
  if (::access(kPromtool, X_OK) != 0) {
    GTEST_SKIP() << kPromtool << " is not there: install prometheus";
  }
  for (const std::string& address : {source_metrics_, destination_metrics_}) {
    // Not the library's own, which are none of ours and not named by the rules.
    std::string ours;
    for (absl::string_view line : absl::StrSplit(Scrape(address), '\n')) {
      if (!absl::StrContains(line, "exposer_")) {
        absl::StrAppend(&ours, line, "\n");
      }
    }
    WriteFile(In("metrics"), ours);
    Run(absl::StrCat(kPromtool, " check metrics < ", In("metrics")));
  }
  Run(absl::StrCat(kPromtool, " check rules packaging/prometheus/alerts.yml"));
  Run(absl::StrCat(kPromtool,
                   " test rules packaging/prometheus/alerts_test.yml"));
}

// A Prometheus server of the test's own, on loopback.
class PrometheusTest : public MetricsTest {
 protected:
  void SetUp() override {
    if (::access(kPrometheus, X_OK) != 0) {
      GTEST_SKIP() << kPrometheus << " is not there: install prometheus";
    }
    MetricsTest::SetUp();
  }

  void StartPrometheus() {
    const std::string rules =
        std::filesystem::absolute("packaging/prometheus/alerts.yml");
    WriteFile(
        In("prometheus.yml"),
        absl::StrCat(
            "global: {scrape_interval: 200ms, ", "scrape_timeout: 200ms, ",
            "evaluation_interval: 200ms}\n", "rule_files: ['", rules, "']\n",
            "scrape_configs:\n", "- job_name: pageserverd\n",
            "  static_configs: [{targets: ['", source_metrics_, "']}]\n",
            "- job_name: faultd\n", "  static_configs: [{targets: ['",
            destination_metrics_, "']}]\n"));
    address_ = absl::StrCat("127.0.0.1:", FreePort());
    auto started = ChildProcess::Start(
        {.argv = {kPrometheus, "--config.file=" + In("prometheus.yml"),
                  "--storage.tsdb.path=" + In("tsdb"),
                  "--web.listen-address=" + address_},
         .stdout_path = In("prometheus.log"),
         .stderr_path = In("prometheus.log")});
    ASSERT_OK(started.status());
    prometheus_ = *std::move(started);
  }

  // Asks until the answer has each of `parts` in it.
  void AwaitAnswer(const std::string& path,
                   const std::vector<std::string>& parts) {
    std::string last;
    const absl::Time deadline = absl::Now() + kPatience;
    do {
      const auto answer = HttpGet(address_, path, kPatience);
      last = answer.ok() ? *answer : std::string(answer.status().message());
      bool all = answer.ok();
      for (const std::string& part : parts) {
        all = all && absl::StrContains(last, part);
      }
      if (all) return;
      absl::SleepFor(absl::Milliseconds(100));
    } while (absl::Now() < deadline);
    FAIL() << path << ": " << last << "\n"
           << TailOfFile(In("prometheus.log"), 20);
  }

  std::string address_;
  std::optional<ChildProcess> prometheus_;
};

TEST_F(PrometheusTest, AServerScrapesBothDaemonsAndEvaluatesTheAlerts) {
  ASSERT_NO_FATAL_FAILURE(StartPrometheus());
  AwaitAnswer("/api/v1/query?query=count(up==1)", {"\"2\"]"});
  AwaitAnswer("/api/v1/query?query=postcopy_build_info",
              {"\"job\":\"pageserverd\"", "\"job\":\"faultd\"", "\"version\""});
  AwaitAnswer("/api/v1/query?query=sum(postcopy_migrations)by(role)",
              {"\"role\":\"source\"", "\"role\":\"destination\""});
  AwaitAnswer(
      "/api/v1/query?query=count(postcopy_fault_latency_seconds_bucket"
      "{role=%22snapshot%22})",
      {"\"32\"]"});
  // What Prometheus itself makes of the types.
  AwaitAnswer("/api/v1/targets/metadata?metric=postcopy_pages_moved_total",
              {"\"type\":\"counter\""});
  AwaitAnswer("/api/v1/rules?type=alert",
              {"PostcopyGuestsWait", "\"health\":\"ok\""});
  const auto rules = HttpGet(address_, "/api/v1/rules?type=alert", kPatience);
  ASSERT_OK(rules.status());
  EXPECT_FALSE(absl::StrContains(*rules, "\"health\":\"err\"")) << *rules;
  // And a daemon that goes is seen to go.
  ASSERT_OK(source_->Terminate(kPatience).status());
  AwaitAnswer("/api/v1/query?query=up==0", {"\"job\":\"pageserverd\""});
}

}  // namespace
}  // namespace postcopy
