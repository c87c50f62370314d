// The daemons' flags about security.
#ifndef CMD_SECURITY_SECURITY_FLAGS_H_
#define CMD_SECURITY_SECURITY_FLAGS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "cmd/config/flag_config.h"
#include "cmd/log/log.h"
#include "cmd/security/daemon_security.h"

namespace postcopy {

// What each must be, as FlagConfig checks it.
std::vector<FlagCheck> SecurityChecks();

// Their current values. Sentences go to `log`, which may be null and outlives
// what is made of them. INVALID_ARGUMENT names the flag.
absl::StatusOr<SecurityOptions> SecurityOptionsFromFlags(Log* log);

}  // namespace postcopy

#endif  // CMD_SECURITY_SECURITY_FLAGS_H_
