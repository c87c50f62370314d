#include "dirtytrack/merged_source.h"

#include "dirtytrack/check.h"

namespace postcopy {

MergedSource::MergedSource(std::vector<std::unique_ptr<DirtySource>> sources)
    : sources_(std::move(sources)) {
  POSTCOPY_CHECK(!sources_.empty());
}

absl::Status MergedSource::Start() {
  for (size_t i = 0; i < sources_.size(); ++i) {
    const absl::Status status = sources_[i]->Start();
    if (status.ok()) continue;
    while (i-- > 0) sources_[i]->Stop().IgnoreError();
    return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<PageCount> MergedSource::Collect(PageBitmapView into) {
  absl::Status status;
  PageCount set;
  for (const auto& source : sources_) {
    const absl::StatusOr<PageCount> collected = source->Collect(into);
    if (collected.ok()) set += *collected;
    status.Update(collected.status());
  }
  if (!status.ok()) return status;
  return set;
}

absl::Status MergedSource::Clear(PageBitmapView pages, PageRun run) {
  absl::Status status;
  for (const auto& source : sources_) status.Update(source->Clear(pages, run));
  return status;
}

absl::Status MergedSource::Restore(PageBitmapView unsent) {
  return sources_[0]->Restore(unsent);
}

absl::Status MergedSource::Stop() {
  absl::Status status;
  for (const auto& source : sources_) status.Update(source->Stop());
  return status;
}

}  // namespace postcopy
