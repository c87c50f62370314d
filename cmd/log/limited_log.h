// A log for what a peer can make happen as often as it likes.
#ifndef CMD_LOG_LIMITED_LOG_H_
#define CMD_LOG_LIMITED_LOG_H_

#include <cstdint>
#include <mutex>

#include "cmd/log/log.h"
#include "dirtytrack/clock.h"

namespace postcopy {

// Of each kind of event that peers cause: refusals, sessions, streams.
inline constexpr int kPeerLinesPerSecond = 5;
// Of one migration, which a peer can make go to and fro.
inline constexpr int kMigrationLinesPerSecond = 20;

// Passes on the first so many records of each second and counts the rest, which
// the next one that passes tells in a field SUPPRESSED.
class LimitedLog final : public Log {
 public:
  // `log` may be null; it and `clock` outlive the object.
  LimitedLog(Log* log, int per_second, Clock* clock)
      : log_(log), per_second_(per_second), clock_(clock) {}

  void Write(LogRecord record) override;

 private:
  Log* const log_;
  const int per_second_;
  Clock* const clock_;

  std::mutex mutex_;
  // Guarded by mutex_.
  int64_t second_began_ns_ = 0;
  int in_second_ = 0;
  uint64_t suppressed_ = 0;
};

}  // namespace postcopy

#endif  // CMD_LOG_LIMITED_LOG_H_
