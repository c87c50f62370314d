#include "uffd/map_ahead.h"

#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {

absl::Status MapAhead::Start() {
  absl::StatusOr<std::thread> thread = StartThread([this] { Run(); });
  if (!thread.ok()) return thread.status();
  thread_ = *std::move(thread);
  return absl::OkStatus();
}

void MapAhead::Stop() {
  stopping_.store(true);
  if (thread_.joinable()) thread_.join();
}

void MapAhead::Run() {
  PageIndex from;
  while (!stopping_.load()) {
    const std::optional<PageRun> run =
        state_.NextContentRun(from, kMapAheadPages);
    if (!run.has_value()) return;
    const std::optional<PageCount> settled = installer_.RevealSome(*run);
    if (!settled.has_value()) return;
    // The VMM gives memory up, which the fault loop has to read of first.
    if (settled->empty()) clock_.SleepFor(kMapAheadPauseNanos);
    done_.fetch_add(settled->value(), std::memory_order_relaxed);
    from = run->first + *settled;
  }
}

}  // namespace postcopy
