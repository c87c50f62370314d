#include "cmd/log/daemon_log.h"

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

}  // namespace

DaemonLog::DaemonLog(LogSink sink, LogSeverity level)
    : sink_(std::move(sink)), level_(level), thread_([this] { Run(); }) {}

DaemonLog::~DaemonLog() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void DaemonLog::Write(LogRecord record) {
  if (record.severity > level_) return;
  Cut(record.sentence, kLogSentenceBytesMax);
  for (auto& [name, value] : record.fields) Cut(value, kLogFieldBytesMax);
  {
    const std::lock_guard lock(mutex_);
    if (queue_.size() >= kLogQueueMax) {
      ++dropped_;
      return;
    }
    ++written_;
    queue_.push_back(std::move(record));
  }
  changed_.notify_one();
}

uint64_t DaemonLog::written() const {
  const std::lock_guard lock(mutex_);
  return written_;
}

uint64_t DaemonLog::dropped() const {
  const std::lock_guard lock(mutex_);
  return dropped_;
}

void DaemonLog::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const std::deque<LogRecord> records = std::exchange(queue_, {});
    const uint64_t lost = dropped_ - std::exchange(dropped_told_, dropped_);
    lock.unlock();
    for (const LogRecord& record : records) sink_(record);
    if (lost > 0) {
      sink_({LogSeverity::kWarning,
             absl::StrCat(lost,
                          " lines of this log were dropped: it is "
                          "written more slowly than there is to say"),
             {}});
    }
    lock.lock();
  }
}

}  // namespace postcopy
