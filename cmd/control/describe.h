// Pieces of a Migration resource that both daemons fill in.
#ifndef CMD_CONTROL_DESCRIBE_H_
#define CMD_CONTROL_DESCRIBE_H_

#include <cstdint>

#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// Sets `migration.state_time` from a moment on Clock::Monotonic().
void SetStateTime(int64_t phase_since_ns, v1::Migration& migration);

}  // namespace postcopy

#endif  // CMD_CONTROL_DESCRIBE_H_
