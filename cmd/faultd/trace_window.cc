#include "cmd/faultd/trace_window.h"

#include <algorithm>

#include "cmd/trace/trace_codec.h"

namespace postcopy {
namespace {

static_assert(static_cast<int>(TouchKind::kRead) ==
              static_cast<int>(FaultKind::kRead));
static_assert(static_cast<int>(TouchKind::kWrite) ==
              static_cast<int>(FaultKind::kWrite));
static_assert(static_cast<int>(TouchKind::kMinor) ==
              static_cast<int>(FaultKind::kMinor));
static_assert(static_cast<int>(TouchKind::kWriteProtect) ==
              static_cast<int>(FaultKind::kWriteProtect));

}  // namespace

TraceWindow::TraceWindow(PageCount pages, size_t events_max)
    : events_max_(std::min(events_max, kTraceEventsMax)), checker_(pages) {
  events_.reserve(kTraceWindowMax);
}

void TraceWindow::Add(const FaultRecord& record) {
  if (record.ended) {
    End(record);
  } else {
    Begin(record);
  }
}

void TraceWindow::Begin(const FaultRecord& record) {
  if (taken_ == events_max_) {
    ++dropped_;
    return;
  }
  if (!began_ns_.has_value()) began_ns_ = record.read_ns;
  TraceEvent event = {
      .time_ns = static_cast<uint64_t>(record.read_ns - *began_ns_),
      .page = record.page,
      .thread = record.thread,
      .kind = static_cast<TouchKind>(record.kind),
      .stages_ns = record.stages_ns};
  if (threads_.size() < kTraceThreadsMax - 1) {
    threads_.insert(event.thread);
  } else if (threads_.count(event.thread) == 0) {
    event.thread = 0;
  }
  if (!checker_.Check(event).ok()) {
    ++dropped_;
    return;
  }
  ++taken_;
  events_.push_back(event);
}

void TraceWindow::End(const FaultRecord& record) {
  // Of a fault that was lost, and so was all before it.
  if (!began_ns_.has_value() || record.read_ns < *began_ns_) return;
  const auto time_ns = static_cast<uint64_t>(record.read_ns - *began_ns_);
  auto event = std::lower_bound(
      events_.begin(), events_.end(), time_ns,
      [](const TraceEvent& e, uint64_t ns) { return e.time_ns < ns; });
  for (; event != events_.end() && event->time_ns == time_ns; ++event) {
    if (event->page != record.page) continue;
    event->stages_ns = record.stages_ns;
    return;  // others that touched it then waited with this one
  }
}

absl::Span<const TraceEvent> TraceWindow::Ready(int64_t now_ns,
                                                bool all) const {
  const auto oldest = absl::MakeConstSpan(events_).subspan(
      0, std::min(events_.size(), kTraceBatchEventsMax));
  if (all || Full() || oldest.empty()) return oldest;
  const int64_t until_ns = now_ns - kTraceHoldNanos - *began_ns_;
  const auto waits =
      std::find_if(oldest.begin(), oldest.end(), [&](const TraceEvent& event) {
        return static_cast<int64_t>(event.time_ns) > until_ns;
      });
  return oldest.subspan(0, static_cast<size_t>(waits - oldest.begin()));
}

void TraceWindow::Pop(size_t count) {
  events_.erase(events_.begin(),
                events_.begin() + static_cast<ptrdiff_t>(count));
}

}  // namespace postcopy
