// What becomes of one migration, for the log.
#ifndef CMD_CONTROL_MIGRATION_LOG_H_
#define CMD_CONTROL_MIGRATION_LOG_H_

#include <string>

#include "cmd/log/limited_log.h"
#include "cmd/log/log.h"
#include "dirtytrack/clock.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// Writes each change of state with its message and the migration's ids. A peer
// can make a migration lose and find it without end: of these changes at most
// kMigrationLinesPerSecond are written; of ends each. Thread-safe.
class MigrationLog {
 public:
  // `log` may be null; it and `clock` outlive the object.
  MigrationLog(Log* log, const v1::CreateMigrationRequest& request,
               Clock* clock);

  // Does not block.
  void Changed(v1::MigrationState state, const std::string& message);

 private:
  Log* const log_;
  LimitedLog limited_;
  const LogFields fields_;
};

}  // namespace postcopy

#endif  // CMD_CONTROL_MIGRATION_LOG_H_
