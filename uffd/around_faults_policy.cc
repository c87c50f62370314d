#include "uffd/around_faults_policy.h"

#include <algorithm>

namespace postcopy {
namespace {

// Streams that ended without a second fault, against those that had one: so
// many make the first window half as large, and one that is taken up again
// outweighs so many.
constexpr uint64_t kDisappointmentsPerStep = 4;
constexpr uint64_t kDisappointmentsPerSuccess = 4;
constexpr uint64_t kDisappointmentsMax = 32;

// A window that is halved below this is none.
constexpr uint64_t kSmallestWindow = 4;

uint64_t Grown(uint64_t window) {
  return std::clamp(window * 2, AroundFaultsPolicy::kFirstWindow.value(),
                    AroundFaultsPolicy::kLargestWindow.value());
}

uint64_t Shrunk(uint64_t window) {
  return window / 2 < kSmallestWindow ? 0 : window / 2;
}

uint64_t Below(uint64_t page, uint64_t by) { return page - std::min(page, by); }

// From the end of one to the begin of the other, or 0.
uint64_t Gap(uint64_t end, uint64_t begin) {
  return begin > end ? begin - end : 0;
}

PageRun Between(uint64_t begin, uint64_t end) {
  return {PageIndex(begin), PageCount(Gap(begin, end))};
}

}  // namespace

PageCount AroundFaultsPolicy::first_window() const {
  const uint64_t window =
      kFirstWindow.value() >> (disappointments_ / kDisappointmentsPerStep);
  return PageCount(window < kSmallestWindow ? 0 : window);
}

void AroundFaultsPolicy::NoteFault(PageRun unit) {
  const uint64_t first = unit.first.value();
  const uint64_t end = unit.end().value();
  ++faults_;
  Stream* const stream = Find(first, end);
  if (stream == nullptr) {
    Begin(first, end);
  } else {
    Continue(*stream, first, end);
  }
}

AroundFaultsPolicy::Stream* AroundFaultsPolicy::Find(uint64_t first,
                                                     uint64_t end) {
  const uint64_t near = std::max(kNear.value(), end - first);
  Stream* found = nullptr;
  for (Stream& stream : streams_) {
    const uint64_t gap =
        std::max(Gap(stream.high, first), Gap(end, stream.low));
    if (stream.last_fault == 0 || gap > near) continue;
    if (found == nullptr || stream.last_fault > found->last_fault) {
      found = &stream;
    }
  }
  return found;
}

AroundFaultsPolicy::Stream& AroundFaultsPolicy::Replaceable() {
  const auto proven = static_cast<size_t>(
      std::count_if(streams_.begin(), streams_.end(),
                    [](const Stream& each) { return each.proven; }));
  const bool keep_proven = proven <= kProvenStreams;
  return *std::min_element(streams_.begin(), streams_.end(),
                           [keep_proven](const Stream& a, const Stream& b) {
                             if (keep_proven && a.proven != b.proven) {
                               return b.proven;
                             }
                             return a.last_fault < b.last_fault;
                           });
}

void AroundFaultsPolicy::Begin(uint64_t first, uint64_t end) {
  Stream& replaced = Replaceable();
  if (replaced.last_fault != 0 && !replaced.proven) {
    disappointments_ = std::min(disappointments_ + 1, kDisappointmentsMax);
  }
  const uint64_t window = first_window().value();
  replaced = {.low = first,
              .high = end,
              .ahead = window,
              .behind = window,
              .ahead_left = window,
              .behind_left = window,
              .last_fault = faults_};
}

void AroundFaultsPolicy::Continue(Stream& stream, uint64_t first,
                                  uint64_t end) {
  stream.last_fault = faults_;
  if (!stream.proven) {
    stream.proven = true;
    disappointments_ -= std::min(disappointments_, kDisappointmentsPerSuccess);
  }
  // Inside it a page is not here yet: the way is right, and being looked at.
  if (first >= stream.high) {
    stream.high = end;
    stream.ahead_left = stream.ahead = Grown(stream.ahead);
    stream.behind = Shrunk(stream.behind);
    stream.behind_left = std::min(stream.behind_left, stream.behind);
  } else if (end <= stream.low) {
    stream.low = first;
    stream.behind_left = stream.behind = Grown(stream.behind);
    stream.ahead = Shrunk(stream.ahead);
    stream.ahead_left = std::min(stream.ahead_left, stream.ahead);
  }
}

std::optional<PageRun> AroundFaultsPolicy::Ahead(Stream& stream,
                                                 const FetchablePages& pages,
                                                 PageCount max) {
  if (stream.ahead_left == 0) return std::nullopt;
  const std::optional<PageRun> run =
      pages.First({PageIndex(stream.high), kReach},
                  std::min(max, PageCount(stream.ahead_left)));
  if (run.has_value()) {
    stream.high = run->end().value();
    stream.ahead_left -= run->count.value();
  } else {
    stream.ahead_left = 0;
  }
  return run;
}

std::optional<PageRun> AroundFaultsPolicy::Behind(Stream& stream,
                                                  const FetchablePages& pages,
                                                  PageCount max) {
  if (stream.behind_left == 0) return std::nullopt;
  const std::optional<PageRun> run =
      pages.Last(Between(Below(stream.low, kReach.value()), stream.low),
                 std::min(max, PageCount(stream.behind_left)));
  if (run.has_value()) {
    stream.low = run->first.value();
    stream.behind_left -= run->count.value();
  } else {
    stream.behind_left = 0;
  }
  return run;
}

std::optional<PageRun> AroundFaultsPolicy::NextRun(const FetchablePages& pages,
                                                   PageCount max) {
  while (true) {
    Stream* stream = nullptr;
    for (Stream& each : streams_) {
      if (each.ahead_left == 0 && each.behind_left == 0) continue;
      // Who faulted long ago has gone elsewhere, or has what it wants.
      if (stream == nullptr || each.last_fault > stream->last_fault) {
        stream = &each;
      }
    }
    if (stream == nullptr) return std::nullopt;
    const bool ahead_first = stream->ahead >= stream->behind;
    std::optional<PageRun> run =
        ahead_first ? Ahead(*stream, pages, max) : Behind(*stream, pages, max);
    if (!run.has_value()) {
      run = ahead_first ? Behind(*stream, pages, max)
                        : Ahead(*stream, pages, max);
    }
    if (run.has_value()) return run;
  }
}

}  // namespace postcopy
