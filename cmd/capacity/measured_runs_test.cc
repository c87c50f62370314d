// The model against runs of the demo that were measured, in
// testdata/measured_runs.csv. docs/capacity.md says how far off it is.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "cmd/capacity/scenario.h"
#include "cmd/capacity/simulation.h"

namespace postcopy::capacity {
namespace {

constexpr double kMib = 1u << 20;

// How far the model may be from a run: the larger of a part of it and an
// amount below which chance decides.
constexpr double kTimeTolerance = 0.3;
constexpr double kTimeToleranceSeconds = 0.5;
constexpr double kBytesTolerance = 0.25;
constexpr double kStaleTolerance = 0.35;
constexpr double kBytesToleranceMib = 20;

struct MeasuredRun {
  std::string name;
  double ram_mib, got_mib_per_s, write_mib_per_s, vcpus;
  double rounds, precopied_mib, stale_mib, faulted_mib, seconds;
};

std::vector<MeasuredRun> ReadRuns() {
  std::ifstream file("cmd/capacity/testdata/measured_runs.csv");
  std::vector<MeasuredRun> runs;
  std::string line;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> cells = absl::StrSplit(line, ',');
    EXPECT_EQ(cells.size(), 10u) << line;
    std::vector<double> numbers;
    for (size_t i = 1; i < cells.size(); ++i) {
      double number = 0;
      EXPECT_TRUE(absl::SimpleAtod(cells[i], &number)) << line;
      numbers.push_back(number);
    }
    runs.push_back({cells[0], numbers[0], numbers[1], numbers[2], numbers[3],
                    numbers[4], numbers[5], numbers[6], numbers[7],
                    numbers[8]});
  }
  return runs;
}

// The demo's guest (cmd/demovm): one page in eight is never written; of the
// others 80 % are filled at the start, a quarter is hot, and of 1,000 writes 11
// go elsewhere.
VmOutcome Model(const MeasuredRun& run) {
  Scenario s;
  s.vm = {.ram_bytes = run.ram_mib * kMib,
          .zero_fraction = 1 - 0.8 * 7 / 8,
          .hot_bytes = run.ram_mib * kMib / 4 * 7 / 8,
          .hot_write_bytes_per_s = run.write_mib_per_s * kMib * 0.989,
          .cold_write_bytes_per_s = run.write_mib_per_s * kMib * 0.011,
          .vcpus = run.vcpus,
          .bulk_limit_bytes_per_s = run.got_mib_per_s * kMib};
  s.host.link_bytes_per_s = 100e9;
  const auto outcome = Simulate(s);
  EXPECT_TRUE(outcome.ok()) << outcome.status();
  return outcome->vms[0];
}

void ExpectNear(const char* what, double model, double measured,
                double tolerance, double least) {
  EXPECT_LE(std::abs(model - measured), std::max(tolerance * measured, least))
      << what << ": model " << model << ", measured " << measured;
}

TEST(MeasuredRunsTest, TheModelIsAsCloseAsTheDocumentationSays) {
  const std::vector<MeasuredRun> runs = ReadRuns();
  ASSERT_GE(runs.size(), 4u);
  for (const MeasuredRun& run : runs) {
    SCOPED_TRACE(run.name);
    const VmOutcome model = Model(run);
    std::printf(
        "%-24s model/measured: %.2f/%.2f s, %.0f/%.0f MiB precopied, "
        "%.0f/%.0f MiB stale, %.1f/%.1f MiB faulted, %u/%.0f rounds\n",
        run.name.c_str(), model.ended_s, run.seconds,
        model.precopy_bytes / kMib, run.precopied_mib, model.stale_bytes / kMib,
        run.stale_mib, model.faulted_bytes / kMib, run.faulted_mib,
        model.rounds, run.rounds);
    ExpectNear("seconds", model.ended_s, run.seconds, kTimeTolerance,
               kTimeToleranceSeconds);
    ExpectNear("precopied MiB", model.precopy_bytes / kMib, run.precopied_mib,
               kBytesTolerance, kBytesToleranceMib);
    ExpectNear("stale MiB", model.stale_bytes / kMib, run.stale_mib,
               kStaleTolerance, kBytesToleranceMib);
  }
}

}  // namespace
}  // namespace postcopy::capacity
