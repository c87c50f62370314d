// The log of a daemon.
#ifndef CMD_LOG_DAEMON_LOG_H_
#define CMD_LOG_DAEMON_LOG_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

#include "cmd/log/log.h"
#include "cmd/log/log_sink.h"

namespace postcopy {

// Records that wait to be written. One more is dropped, and counted.
inline constexpr size_t kLogQueueMax = 1024;
// Longer texts are cut: peers have a say in some.
inline constexpr size_t kLogSentenceBytesMax = 2048;
inline constexpr size_t kLogFieldBytesMax = 256;
// How long the end of a log waits for a sink that takes nothing.
inline constexpr std::chrono::seconds kLogEndPatience(2);

// Passes records on to a sink, in order, by a thread of its own: who writes
// never waits for a journal or a pipe that is slow or stuck. If records had to
// be dropped, the log says how many.
class DaemonLog final : public Log {
 public:
  // Records less severe than `level` are left out. `patience`: of the end.
  // `sink` owns what it needs: see there.
  DaemonLog(LogSink sink, LogSeverity level,
            std::chrono::nanoseconds patience = kLogEndPatience);
  // Returns when all have been written, or the sink has been stuck for
  // `patience`: then the rest is lost, and the sink may be used for as long as
  // it is.
  ~DaemonLog() override;
  DaemonLog(const DaemonLog&) = delete;
  DaemonLog& operator=(const DaemonLog&) = delete;

  void Write(LogRecord record) override;

  // Records taken, and records dropped for want of room.
  uint64_t written() const;
  uint64_t dropped() const;

 private:
  // What the thread uses, which may outlive this.
  struct State;

  static void Run(State& state);

  const LogSeverity level_;
  const std::chrono::nanoseconds patience_;
  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace postcopy

#endif  // CMD_LOG_DAEMON_LOG_H_
