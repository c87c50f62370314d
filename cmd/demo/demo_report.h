// What the demo found out, and how it is printed.
#ifndef CMD_DEMO_DEMO_REPORT_H_
#define CMD_DEMO_DEMO_REPORT_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/postcopyctl/report.h"
#include "dirtytrack/types.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// The last word of demovm.
struct VmVerdict {
  // False: there was no guest to check.
  bool checked = false;
  uint64_t steps = 0;
  uint64_t pages_checked = 0;
  // Found wrong from outside when the guest was stopped, and by the guest
  // itself while it ran.
  uint64_t corrupt_pages = 0;
  uint64_t guest_corrupt_pages = 0;
  std::string first_corruption;
};

// Reads demovm's report, one JSON object. A key it lacks is a DATA_LOSS error.
absl::StatusOr<VmVerdict> ParseVerdict(const std::string& json);

struct DemoReport {
  std::string guest;
  ByteCount ram;
  uint32_t vcpus = 0;
  MigrateReport migration;
  VmVerdict verdict;

  uint64_t corrupt_pages() const {
    return verdict.corrupt_pages + verdict.guest_corrupt_pages;
  }
};

// OK if the migration is complete, all of the guest's data was checked and none
// is corrupt; otherwise DATA_LOSS or INTERNAL with a sentence.
absl::Status Judge(const DemoReport& report);

// One line; scripts depend on the keys and their order.
std::string DemoReportJson(const DemoReport& report);
// For people: aligned lines and the histogram.
std::string DemoReportTable(const DemoReport& report);

// A line for each bucket from the first to the last that is not empty; the
// fullest has `width` marks. Empty if there were no faults.
std::string LatencyHistogram(const v1::FaultLatency& latency, size_t width);

}  // namespace postcopy

#endif  // CMD_DEMO_DEMO_REPORT_H_
