#include "pageserver/stream_deadlines.h"

#include "dirtytrack/check.h"

namespace postcopy {

StreamDeadlines::StreamDeadlines(std::chrono::nanoseconds patience)
    : patience_(patience), thread_([this] { Run(); }) {}

StreamDeadlines::~StreamDeadlines() {
  {
    std::lock_guard lock(mutex_);
    POSTCOPY_CHECK(silent_.empty());
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

StreamDeadlines::Pending::Pending(StreamDeadlines* deadlines,
                                  std::function<void()> end)
    : deadlines_(deadlines) {
  const Moment now = std::chrono::steady_clock::now();
  std::lock_guard lock(deadlines_->mutex_);
  id_ = deadlines_->next_id_++;
  deadlines_->silent_[id_] = {now + deadlines_->patience_, std::move(end)};
  // Else the thread waits for an earlier one.
  if (deadlines_->silent_.size() == 1) deadlines_->changed_.notify_all();
}

StreamDeadlines::Pending::~Pending() {
  std::lock_guard lock(deadlines_->mutex_);
  deadlines_->silent_.erase(id_);
}

void StreamDeadlines::Run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (silent_.empty()) {
      changed_.wait(lock, [this] { return stop_ || !silent_.empty(); });
      continue;
    }
    const auto first = silent_.begin();
    const Moment deadline = first->second.deadline;
    if (std::chrono::steady_clock::now() < deadline) {
      changed_.wait_until(lock, deadline);
      continue;
    }
    first->second.end();
    silent_.erase(first);
  }
}

}  // namespace postcopy
