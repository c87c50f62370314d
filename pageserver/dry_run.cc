#include "pageserver/dry_run.h"

#include <algorithm>

#include "dirtytrack/page_bitmap.h"
#include "pageserver/precopy_rounds.h"

namespace postcopy {
namespace {

// Bytes of pages that were written per second.
absl::StatusOr<uint64_t> DirtyRate(PageCount pages, DirtySource* dirty_source,
                                   Clock* clock) {
  absl::StatusOr<PageBitmap> written = PageBitmap::Create(pages);
  if (!written.ok()) return written.status();
  // What was written before is not of this time, and would not be told again.
  absl::StatusOr<PageCount> before = dirty_source->Collect(written->view());
  if (!before.ok()) return before.status();
  for (PageRun rest{PageIndex(0), pages}; !rest.count.empty();) {
    const PageRun some{rest.first, std::min(rest.count, kClearPages)};
    absl::Status cleared = dirty_source->Clear(written->view(), some);
    if (!cleared.ok()) return cleared;
    rest = {some.end(), rest.count - some.count};
  }
  written->Reset();
  const int64_t began = clock->NowNanos();
  clock->SleepFor(kDryRunNanos);
  absl::StatusOr<PageCount> dirty = dirty_source->Collect(written->view());
  if (!dirty.ok()) return dirty.status();
  const int64_t nanos = std::max<int64_t>(clock->NowNanos() - began, 1);
  return static_cast<uint64_t>(
      static_cast<__uint128_t>(BytesIn(*dirty).value()) * kNanosPerSecond /
      nanos);
}

}  // namespace

absl::StatusOr<Estimate> DryRun(const GuestMemory& memory,
                                DirtySource* dirty_source,
                                const SourceOptions& options, Clock* clock) {
  const PageCount pages = memory.layout().pages();
  SwitchOverAdvisor advisor({.policy = options.policy,
                             .rounds_max = options.rounds_max,
                             .total = pages});
  if (options.policy != MigrationPolicy::kPostcopyOnly) {
    if (absl::Status s = dirty_source->Start(); !s.ok()) return s;
    absl::StatusOr<uint64_t> rate = DirtyRate(pages, dirty_source, clock);
    const absl::Status stopped = dirty_source->Stop();
    if (!rate.ok()) return rate.status();
    if (!stopped.ok()) return stopped;
    advisor.SetDirtyRate(*rate);
  }
  const PageCount allocated(memory.Allocated().value() / kPageSize);
  return advisor.EstimateFor(allocated, options.bulk_limit_per_second);
}

}  // namespace postcopy
