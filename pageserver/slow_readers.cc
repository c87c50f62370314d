#include "pageserver/slow_readers.h"

#include <algorithm>
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

bool SlowReaders::Submit(uint64_t disk, Read read) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_ <= RunnableLocked() && threads_.size() < threads_max_) {
    absl::StatusOr<std::thread> thread = StartThread([this] { Run(); });
    // With fewer of them it takes longer.
    if (thread.ok()) threads_.push_back(*std::move(thread));
  }
  if (threads_.empty()) return false;
  disks_[disk].waiting.push_back(std::move(read));
  changed_.notify_one();
  return true;
}

size_t SlowReaders::RunnableLocked() const {
  size_t runnable = 0;
  for (const auto& [id, disk] : disks_) {
    runnable += std::min(disk.waiting.size(), per_disk_max_ - disk.running);
  }
  return runnable;
}

std::map<uint64_t, SlowReaders::Disk>::iterator SlowReaders::NextLocked() {
  auto it = disks_.upper_bound(last_disk_);
  for (size_t looked = 0; looked < disks_.size(); ++looked) {
    if (it == disks_.end()) it = disks_.begin();
    const Disk& disk = it->second;
    if (!disk.waiting.empty() && disk.running < per_disk_max_) return it;
    ++it;
  }
  return disks_.end();
}

void SlowReaders::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    ++idle_;
    auto next = disks_.end();
    changed_.wait(lock, [&] {
      next = NextLocked();
      return stopping_ || next != disks_.end();
    });
    --idle_;
    if (stopping_) return;
    last_disk_ = next->first;
    ++next->second.running;
    {
      const Read read = std::move(next->second.waiting.front());
      next->second.waiting.pop_front();
      lock.unlock();
      read();
      // What it holds goes without the lock.
    }
    lock.lock();
    --next->second.running;
    if (next->second.running == 0 && next->second.waiting.empty()) {
      disks_.erase(next);
    }
    // This thread takes what its end has made room for.
  }
}

}  // namespace postcopy
