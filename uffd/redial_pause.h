// How long to wait between two sessions with a source.
#ifndef UFFD_REDIAL_PAUSE_H_
#define UFFD_REDIAL_PAUSE_H_

#include <cstdint>

#include "absl/status/status.h"

namespace postcopy {

// Twice as long each time, up to a limit, and from the start again behind a
// session that was of use, or that the network ended: a source that takes every
// session and ends it for a reason of its own is not to be asked in a loop.
// Not thread-safe.
class RedialPause {
 public:
  // REQUIRES: 0 < first_ns <= last_ns.
  RedialPause(int64_t first_ns, int64_t last_ns)
      : first_ns_(first_ns), last_ns_(last_ns), next_ns_(first_ns) {}

  // A session that was opened has ended with `status`; it `brought` pages.
  void OnSessionEnded(const absl::Status& status, bool brought) {
    if (brought || absl::IsUnavailable(status)) next_ns_ = first_ns_;
  }
  // Before the next dial, in nanoseconds.
  int64_t Next() {
    const int64_t now_ns = next_ns_;
    next_ns_ = next_ns_ > last_ns_ / 2 ? last_ns_ : 2 * next_ns_;
    return now_ns;
  }

 private:
  const int64_t first_ns_;
  const int64_t last_ns_;
  int64_t next_ns_;
};

}  // namespace postcopy

#endif  // UFFD_REDIAL_PAUSE_H_
