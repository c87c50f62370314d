// What is printed of migrations: the result of `migrate`, which merges both
// sides, and single sides as `get` and `list` show them.
#ifndef CMD_POSTCOPYCTL_REPORT_H_
#define CMD_POSTCOPYCTL_REPORT_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cmd/postcopyctl/json_writer.h"
#include "cmd/postcopyctl/migrate.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// Both sides of a migration in one. What the switch-over took and what went
// before it is the source's word, what came after the destination's.
struct MigrateReport {
  std::string migration_id;
  std::string vm_name;
  v1::MigrationState state = v1::MIGRATION_STATE_UNSPECIFIED;
  v1::MigrationPolicy policy = v1::MIGRATION_POLICY_UNSPECIFIED;
  uint64_t rounds = 0;
  uint64_t pages_total = 0;
  uint64_t pages_zero = 0;
  uint64_t pages_precopied = 0;
  uint64_t pages_stale_at_switchover = 0;
  uint64_t pages_faulted = 0;
  uint64_t pages_background = 0;
  uint64_t downtime_us = 0;
  uint64_t added_downtime_us = 0;
  v1::FaultLatency fault_latency;
  // Not in what `migrate` prints; `get` and the demo have it.
  v1::FaultTimes fault_times;
  uint64_t precopy_bytes_per_second = 0;
  uint64_t total_ms = 0;
};

MigrateReport MergeReport(const MigrateOptions& options,
                          const MigrateResult& result);

// One line, keys as in MigrateReport; documented in --help.
std::string ReportJson(const MigrateReport& report);
// Several aligned lines.
std::string ReportTable(const MigrateReport& report);

// {"p50":...,"p90":...,"p99":...,"max":...}
JsonObject LatencyJson(const v1::FaultLatency& latency);

// One side, all fields, numbers as numbers.
std::string MigrationJson(const v1::Migration& migration);
std::string MigrationTable(const v1::Migration& migration);
// A header and a line for each.
std::string MigrationListTable(const std::vector<v1::Migration>& migrations);

// "name   value" lines, the values in one column.
std::string AlignedLines(
    const std::vector<std::pair<std::string, std::string>>& rows);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_REPORT_H_
