#include "cmd/log/log.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

constexpr std::pair<LogSeverity, const char*> kNames[] = {
    {LogSeverity::kError, "error"},   {LogSeverity::kWarning, "warning"},
    {LogSeverity::kNotice, "notice"}, {LogSeverity::kInfo, "info"},
    {LogSeverity::kDebug, "debug"},
};

}  // namespace

absl::string_view LogSeverityName(LogSeverity severity) {
  for (const auto& [value, name] : kNames) {
    if (value == severity) return name;
  }
  return "unknown";
}

absl::StatusOr<LogSeverity> ParseLogSeverity(absl::string_view name) {
  for (const auto& [value, known] : kNames) {
    if (known == name) return value;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--log_level=", name, " must be error, warning, notice, info or debug"));
}

void WriteTo(Log* log, LogSeverity severity, std::string sentence,
             LogFields fields) {
  if (log == nullptr) return;
  log->Write({severity, std::move(sentence), std::move(fields)});
}

}  // namespace postcopy
