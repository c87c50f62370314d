// What a daemon tells its operator: sentences with fields.
#ifndef CMD_LOG_LOG_H_
#define CMD_LOG_LOG_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace postcopy {

// The numbers are those of syslog and the journal.
enum class LogSeverity {
  kError = 3,    // something is lost, or cannot be done
  kWarning = 4,  // something went wrong and is dealt with
  kNotice = 5,   // rare and normal: start, end
  kInfo = 6,     // what happens to VMs and migrations
  kDebug = 7,
};

// "error", "warning", "notice", "info", "debug".
absl::string_view LogSeverityName(LogSeverity severity);
// INVALID_ARGUMENT lists them.
absl::StatusOr<LogSeverity> ParseLogSeverity(absl::string_view name);

// Names of fields are upper case, as the journal wants them. These are used in
// the whole project, so that one query finds them.
inline constexpr char kMigrationIdField[] = "MIGRATION_ID";
inline constexpr char kVmNameField[] = "VM_NAME";
inline constexpr char kStateField[] = "STATE";
inline constexpr char kTraceIdField[] = "TRACE_ID";

using LogFields = std::vector<std::pair<std::string, std::string>>;

struct LogRecord {
  LogSeverity severity = LogSeverity::kInfo;
  // For people. May quote what a peer said.
  std::string sentence;
  LogFields fields;
};

// Takes records. Thread-safe.
class Log {
 public:
  virtual ~Log() = default;

  // Does not block: may be called with locks held. Never from the fault path,
  // and for nothing that happens per fault or per page.
  virtual void Write(LogRecord record) = 0;
};

// Writes to `log`, unless that is null.
void WriteTo(Log* log, LogSeverity severity, std::string sentence,
             LogFields fields = {});

}  // namespace postcopy

#endif  // CMD_LOG_LOG_H_
