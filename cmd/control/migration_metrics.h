// The metrics of a daemon's migrations.
#ifndef CMD_CONTROL_MIGRATION_METRICS_H_
#define CMD_CONTROL_MIGRATION_METRICS_H_

#include <string>

#include "cmd/control/migration_table.h"
#include "cmd/metrics/metric_families.h"

namespace postcopy {

// Adds all of `totals`, those of their VMs too. `role` is the label: "source"
// or "destination".
void AddMigrationMetrics(const std::string& role, const MigrationTotals& totals,
                         MetricFamilies& families);

}  // namespace postcopy

#endif  // CMD_CONTROL_MIGRATION_METRICS_H_
