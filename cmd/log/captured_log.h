// A log for tests: keeps what it is told.
#ifndef CMD_LOG_CAPTURED_LOG_H_
#define CMD_LOG_CAPTURED_LOG_H_

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cmd/log/log.h"

namespace postcopy {

class CapturedLog final : public Log {
 public:
  void Write(LogRecord record) override {
    const std::lock_guard lock(mutex_);
    records_.push_back(std::move(record));
  }

  std::vector<LogRecord> records() const {
    const std::lock_guard lock(mutex_);
    return records_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<LogRecord> records_;  // guarded by mutex_
};

// The field's value; empty if the record has none.
inline std::string FieldOf(const LogRecord& record, const std::string& name) {
  for (const auto& [field, value] : record.fields) {
    if (field == name) return value;
  }
  return "";
}

}  // namespace postcopy

#endif  // CMD_LOG_CAPTURED_LOG_H_
