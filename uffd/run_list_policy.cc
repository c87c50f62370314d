#include "uffd/run_list_policy.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <utility>
#include <vector>

namespace postcopy {

void RunListPolicy::Append(absl::Span<const PageRun> runs) {
  const auto before = [this](uint32_t a, uint32_t b) {
    return runs_[a].first < runs_[b].first;
  };
  const auto old_size = static_cast<ptrdiff_t>(by_page_.size());
  for (const PageRun& run : runs) {
    if (run.count.empty()) continue;
    by_page_.push_back(static_cast<uint32_t>(runs_.size()));
    runs_.push_back(run);
  }
  std::sort(by_page_.begin() + old_size, by_page_.end(), before);
  std::vector<uint32_t> merged(by_page_.size());
  std::merge(by_page_.begin(), by_page_.begin() + old_size,
             by_page_.begin() + old_size, by_page_.end(), merged.begin(),
             before);
  by_page_ = std::move(merged);
}

std::optional<PageRun> RunListPolicy::NextRun(const FetchablePages& pages,
                                              PageCount max) {
  while (true) {
    for (; next_ < runs_.size(); ++next_) {
      const std::optional<PageRun> run = pages.First(runs_[next_], max);
      if (run.has_value()) return run;
    }
    if (!skipped_) return std::nullopt;
    skipped_ = false;
    next_ = 0;
  }
}

std::optional<size_t> RunListPolicy::Find(PageRun unit) const {
  const auto after = std::lower_bound(
      by_page_.begin(), by_page_.end(), unit.end(),
      [this](uint32_t at, PageIndex page) { return runs_[at].first < page; });
  if (after == by_page_.begin()) return std::nullopt;
  const size_t at = *(after - 1);
  if (runs_[at].end() <= unit.first) return std::nullopt;
  return at;
}

void RunListPolicy::NoteFault(PageRun unit) {
  if (runs_.empty()) return;
  const std::optional<size_t> at = Find(unit);
  hits_ = hits_ << 1 | (at.has_value() ? 1 : 0);
  judged_ = std::min(judged_ + 1, kFaultsJudged);
  if (faults_ == Faults::kIgnore || !at.has_value() || *at < next_) return;
  skipped_ = skipped_ || *at > next_;
  next_ = *at;
}

bool RunListPolicy::Doubtful() const {
  return judged_ == kFaultsJudged &&
         std::popcount(hits_) <= kFaultsJudged - kFaultsElsewhere;
}

}  // namespace postcopy
