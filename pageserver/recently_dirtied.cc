#include "pageserver/recently_dirtied.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace postcopy {

void RecentlyDirtied::Add(PageBitmapView pages) {
  std::vector<PageRun> runs;
  PageIndex at(0);
  while (runs.size() < kDirtiedRunsKeptMax) {
    const std::optional<PageRun> run = pages.NextSetRun(at);
    if (!run.has_value()) break;
    runs.push_back(*run);
    at = run->end();
  }
  const size_t kept = std::min(runs_.size(), kDirtiedRunsKeptMax - runs.size());
  runs.insert(runs.end(), runs_.begin(),
              runs_.begin() + static_cast<ptrdiff_t>(kept));
  runs_ = std::move(runs);
}

}  // namespace postcopy
