// The flags of both daemons that say how they are watched. Linked into the
// programs only: flags are global.
#ifndef CMD_DAEMON_OBSERVATION_FLAGS_H_
#define CMD_DAEMON_OBSERVATION_FLAGS_H_

#include <string>

#include "cmd/config/flag_config.h"
#include "cmd/log/log.h"

namespace postcopy {

// The rule of --log_level.
FlagCheck LogLevelCheck();
// --log_level. REQUIRES: its check has passed.
LogSeverity LogLevelFlag();
// --channelz.
bool ChannelzFlag();

// The rule of --metrics_address, which each daemon has itself, since the
// defaults differ.
absl::Status CheckMetricsFlag(const std::string& address);

}  // namespace postcopy

#endif  // CMD_DAEMON_OBSERVATION_FLAGS_H_
