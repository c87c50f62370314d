#include "uffd/map_ahead.h"

#include <chrono>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {

absl::Status MapAhead::Start() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(false);
    going_ = false;
    ended_ = false;
  }
  absl::StatusOr<std::thread> thread = StartThread([this] { Run(); });
  if (!thread.ok()) return thread.status();
  thread_ = *std::move(thread);
  return absl::OkStatus();
}

void MapAhead::Go() {
  const std::lock_guard<std::mutex> lock(mutex_);
  going_ = true;
  changed_.notify_all();
}

void MapAhead::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(true);
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

bool MapAhead::AwaitNothingStaged(const std::atomic<bool>* give_up) {
  if (!ram_.has_staging()) return true;
  std::unique_lock<std::mutex> lock(mutex_);
  const auto over = [this] { return ended_ || stopping_.load(); };
  while (!changed_.wait_for(lock, std::chrono::milliseconds(10), over)) {
    if (give_up != nullptr && give_up->load()) return false;
  }
  return !ram_.AnyStaged();
}

bool MapAhead::AwaitGo() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return going_ || stopping_.load(); });
  return going_;
}

void MapAhead::Run() {
  // More than once only if something waited that could not be copied.
  while (AwaitGo() && !stopping_.load() && RevealAll() && ram_.AnyStaged()) {
    clock_.SleepFor(kMapAheadPauseNanos);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

bool MapAhead::RevealAll() {
  PageIndex from;
  while (!stopping_.load()) {
    const std::optional<PageRun> run =
        state_.NextContentRun(from, kMapAheadPages);
    if (!run.has_value()) return true;
    const std::optional<PageCount> settled = installer_.RevealSome(*run);
    if (!settled.has_value()) return false;
    // The VMM gives memory up, which the fault loop has to read of first.
    if (settled->empty()) clock_.SleepFor(kMapAheadPauseNanos);
    done_.fetch_add(settled->value(), std::memory_order_relaxed);
    from = run->first + *settled;
  }
  return true;
}

}  // namespace postcopy
