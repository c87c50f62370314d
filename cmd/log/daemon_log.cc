#include "cmd/log/daemon_log.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

void Cut(std::string& text, size_t bytes_max) {
  if (text.size() <= bytes_max) return;
  text.resize(bytes_max);
  text += "...";
}

LogRecord Lost(uint64_t lines) {
  return {LogSeverity::kWarning,
          absl::StrCat(lines,
                       " lines of this log were dropped: it is written more "
                       "slowly than there is to say"),
          {}};
}

}  // namespace

struct DaemonLog::State {
  explicit State(LogSink to) : sink(std::move(to)) {}

  const LogSink sink;
  std::atomic<uint64_t> passed_on{0};

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex.
  std::deque<LogRecord> queue;
  uint64_t written = 0;
  uint64_t dropped = 0;
  uint64_t dropped_told = 0;
  bool closing = false;
  bool ended = false;
};

DaemonLog::DaemonLog(LogSink sink, LogSeverity level,
                     std::chrono::nanoseconds patience)
    : level_(level),
      patience_(patience),
      state_(std::make_shared<State>(std::move(sink))),
      thread_([state = state_] { Run(*state); }) {}

DaemonLog::~DaemonLog() {
  std::unique_lock lock(state_->mutex);
  state_->closing = true;
  state_->changed.notify_all();
  uint64_t seen = 0;
  // As long as it takes something, it is slow and not stuck.
  do {
    seen = state_->passed_on.load();
    state_->changed.wait_for(lock, patience_, [this] { return state_->ended; });
  } while (!state_->ended && state_->passed_on.load() != seen);
  const bool ended = state_->ended;
  lock.unlock();
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void DaemonLog::Write(LogRecord record) {
  if (record.severity > level_) return;
  Cut(record.sentence, kLogSentenceBytesMax);
  for (auto& [name, value] : record.fields) Cut(value, kLogFieldBytesMax);
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->queue.size() >= kLogQueueMax) {
      ++state_->dropped;
      return;
    }
    ++state_->written;
    state_->queue.push_back(std::move(record));
  }
  state_->changed.notify_all();
}

uint64_t DaemonLog::written() const {
  const std::lock_guard lock(state_->mutex);
  return state_->written;
}

uint64_t DaemonLog::dropped() const {
  const std::lock_guard lock(state_->mutex);
  return state_->dropped;
}

void DaemonLog::Run(State& state) {
  std::unique_lock lock(state.mutex);
  while (true) {
    state.changed.wait(lock,
                       [&] { return state.closing || !state.queue.empty(); });
    if (state.queue.empty()) break;
    const std::deque<LogRecord> records = std::exchange(state.queue, {});
    const uint64_t lost =
        state.dropped - std::exchange(state.dropped_told, state.dropped);
    lock.unlock();
    for (const LogRecord& record : records) {
      state.sink(record);
      state.passed_on.fetch_add(1);
    }
    if (lost > 0) state.sink(Lost(lost));
    lock.lock();
  }
  state.ended = true;
  state.changed.notify_all();
}

}  // namespace postcopy
