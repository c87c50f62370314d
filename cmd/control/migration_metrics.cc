#include "cmd/control/migration_metrics.h"

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "cmd/metrics/vm_metrics.h"

namespace postcopy {
namespace {

// "precopy" of MIGRATION_STATE_PRECOPY.
std::string LabelOf(v1::MigrationState state) {
  return absl::AsciiStrToLower(
      absl::StripPrefix(v1::MigrationState_Name(state), "MIGRATION_STATE_"));
}

void AddStates(const std::string& role, const MigrationTotals& totals,
               MetricFamilies& families) {
  for (int i = v1::MIGRATION_STATE_UNSPECIFIED + 1;
       i < v1::MigrationState_ARRAYSIZE; ++i) {
    if (!v1::MigrationState_IsValid(i)) continue;
    const auto state = static_cast<v1::MigrationState>(i);
    const MetricLabels labels = {{"role", role}, {"state", LabelOf(state)}};
    families.Gauge("postcopy_migrations",
                   "Migrations that this daemon has a record of, by state.",
                   static_cast<double>(totals.present[i]), labels);
    if (state != v1::MIGRATION_STATE_COMPLETED &&
        state != v1::MIGRATION_STATE_CANCELLED &&
        state != v1::MIGRATION_STATE_FAILED) {
      continue;
    }
    families.Counter("postcopy_migrations_ended_total",
                     "Migrations that have ended, by how.",
                     static_cast<double>(totals.ended[i]), labels);
  }
}

}  // namespace

void AddMigrationMetrics(const std::string& role, const MigrationTotals& totals,
                         MetricFamilies& families) {
  const MetricLabels labels = {{"role", role}};
  AddStates(role, totals, families);
  families.Counter("postcopy_create_requests_total",
                   "Requests to create a migration, repeated ones too.",
                   static_cast<double>(totals.create_requests), labels);
  families.Counter("postcopy_create_refusals_total", "Of these, refused ones.",
                   static_cast<double>(totals.create_refusals), labels);
  AddVmMetrics(role, totals.vm, families);
}

}  // namespace postcopy
