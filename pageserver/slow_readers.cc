#include "pageserver/slow_readers.h"

#include <utility>

#include "absl/status/statusor.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {

SlowReaders::~SlowReaders() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

bool SlowReaders::Submit(Read read) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_ <= waiting_.size() && threads_.size() < threads_max_) {
    absl::StatusOr<std::thread> thread = StartThread([this] { Run(); });
    // With fewer of them it takes longer.
    if (thread.ok()) threads_.push_back(*std::move(thread));
  }
  if (threads_.empty()) return false;
  waiting_.push_back(std::move(read));
  changed_.notify_one();
  return true;
}

void SlowReaders::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    ++idle_;
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    --idle_;
    if (stopping_) return;
    {
      const Read read = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      read();
      // What it holds goes without the lock.
    }
    lock.lock();
  }
}

}  // namespace postcopy
