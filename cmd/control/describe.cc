#include "cmd/control/describe.h"

#include <google/protobuf/util/time_util.h>

#include "dirtytrack/clock.h"

namespace postcopy {

void SetStateTime(int64_t phase_since_ns, v1::Migration& migration) {
  using google::protobuf::util::TimeUtil;
  const int64_t ago = Clock::Monotonic()->NowNanos() - phase_since_ns;
  *migration.mutable_state_time() =
      TimeUtil::GetCurrentTime() - TimeUtil::NanosecondsToDuration(ago);
}

}  // namespace postcopy
