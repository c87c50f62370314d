#include "cmd/control/migration_log.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace postcopy {
namespace {

LogSeverity SeverityOf(v1::MigrationState state) {
  switch (state) {
    case v1::MIGRATION_STATE_FAILED:
      return LogSeverity::kError;
    case v1::MIGRATION_STATE_PAUSED:
    case v1::MIGRATION_STATE_CANCELLED:
      return LogSeverity::kWarning;
    default:
      return LogSeverity::kInfo;
  }
}

bool IsEnd(v1::MigrationState state) {
  return state == v1::MIGRATION_STATE_COMPLETED ||
         state == v1::MIGRATION_STATE_CANCELLED ||
         state == v1::MIGRATION_STATE_FAILED;
}

}  // namespace

MigrationLog::MigrationLog(Log* log, const v1::CreateMigrationRequest& request,
                           Clock* clock)
    : log_(log),
      limited_(log, kMigrationLinesPerSecond, clock),
      fields_({{kMigrationIdField, request.migration_id()},
               {kVmNameField, request.vm_name()},
               {kTraceIdField, request.trace_id()}}) {}

void MigrationLog::Changed(v1::MigrationState state,
                           const std::string& message) {
  if (log_ == nullptr) return;
  std::string name(
      absl::StripPrefix(v1::MigrationState_Name(state), "MIGRATION_STATE_"));
  std::string sentence =
      message.empty() ? absl::StrCat("migration is ", name)
                      : absl::StrCat("migration is ", name, ": ", message);
  LogFields fields = fields_;
  fields.emplace_back(kStateField, std::move(name));
  Log& log = IsEnd(state) ? *log_ : limited_;
  log.Write({SeverityOf(state), std::move(sentence), std::move(fields)});
}

}  // namespace postcopy
