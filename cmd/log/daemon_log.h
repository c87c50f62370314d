// The log of a daemon.
#ifndef CMD_LOG_DAEMON_LOG_H_
#define CMD_LOG_DAEMON_LOG_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>

#include "cmd/log/log.h"
#include "cmd/log/log_sink.h"

namespace postcopy {

// Records that wait to be written. One more is dropped, and counted.
inline constexpr size_t kLogQueueMax = 1024;
// Longer texts are cut: peers have a say in some.
inline constexpr size_t kLogSentenceBytesMax = 2048;
inline constexpr size_t kLogFieldBytesMax = 256;

// Passes records on to a sink, in order, by a thread of its own: who writes
// never waits for a journal or a pipe that is slow or stuck. If records had to
// be dropped, the log says how many.
class DaemonLog final : public Log {
 public:
  // Records less severe than `level` are left out.
  DaemonLog(LogSink sink, LogSeverity level);
  // Returns when all have been written.
  ~DaemonLog() override;
  DaemonLog(const DaemonLog&) = delete;
  DaemonLog& operator=(const DaemonLog&) = delete;

  void Write(LogRecord record) override;

  // Records taken, and records dropped for want of room.
  uint64_t written() const;
  uint64_t dropped() const;

 private:
  void Run();

  const LogSink sink_;
  const LogSeverity level_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<LogRecord> queue_;
  uint64_t written_ = 0;
  uint64_t dropped_ = 0;
  uint64_t dropped_told_ = 0;
  bool closing_ = false;

  // Last: it uses what is above.
  std::thread thread_;
};

}  // namespace postcopy

#endif  // CMD_LOG_DAEMON_LOG_H_
