#include "pageserver/urgent_answers.h"

namespace postcopy {
namespace {

// The pages of `pages` from `begin` on that lie one behind the other.
PageRun RunFrom(absl::Span<const PageIndex> pages, size_t begin) {
  PageRun run{pages[begin], PageCount(1)};
  for (size_t i = begin + 1; i < pages.size() && pages[i] == run.end(); ++i) {
    run.count += PageCount(1);
  }
  return run;
}

}  // namespace

std::shared_ptr<UrgentAnswers> UrgentAnswers::Create(Stream stream,
                                                     SlowReaders* readers) {
  std::shared_ptr<UrgentAnswers> answers(
      new UrgentAnswers(std::move(stream), readers));
  answers->ready_.reserve(kBatchPagesMax.value());
  return answers;
}

absl::Status UrgentAnswers::Answer(absl::Span<const PageIndex> pages) {
  // A request with too many pages is refused whole, by `read`.
  const bool in_order =
      stream_.may_wait == nullptr || pages.size() > kBatchPagesMax.value();
  if (!in_order) {
    HandOver(pages);
    if (ready_.empty()) return absl::OkStatus();
    pages = ready_;
  }
  if (absl::Status s = stream_.read(pages, batch_); !s.ok()) return s;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_.ok()) return failure_;
  if (stream_.send(batch_)) return absl::OkStatus();
  return absl::UnavailableError("the stream has ended");
}

void UrgentAnswers::HandOver(absl::Span<const PageIndex> pages) {
  ready_.clear();
  for (size_t at = 0; at < pages.size();) {
    const PageRun run = RunFrom(pages, at);
    at += run.count.value();
    // Seldom so, hence one question for all of them.
    const bool any = stream_.may_wait(run);
    PageRun slow{run.first, PageCount(0)};
    for (PageIndex page = run.first; page < run.end(); page += PageCount(1)) {
      if (any && stream_.may_wait({page, PageCount(1)})) {
        if (slow.count.empty()) slow.first = page;
        slow.count += PageCount(1);
        if (page + PageCount(1) < run.end()) continue;
      } else {
        ready_.push_back(page);
      }
      if (slow.count.empty()) continue;
      if (!Submit(slow)) {
        for (PageIndex p = slow.first; p < slow.end(); p += PageCount(1)) {
          ready_.push_back(p);
        }
      }
      slow.count = PageCount(0);
    }
  }
}

bool UrgentAnswers::Submit(PageRun run) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (late_ >= kSlowReadsPerStream) return false;
    ++late_;
  }
  const bool taken =
      readers_.Submit([self = shared_from_this(), run](PageBatch& batch) {
        self->ReadLate(run, batch);
      });
  if (taken) return true;
  const std::lock_guard<std::mutex> lock(mutex_);
  --late_;
  return false;
}

void UrgentAnswers::ReadLate(PageRun run, PageBatch& batch) {
  std::vector<PageIndex> pages;
  for (PageIndex page = run.first; page < run.end(); page += PageCount(1)) {
    pages.push_back(page);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
  }
  const absl::Status status = stream_.read(pages, batch);
  const std::lock_guard<std::mutex> lock(mutex_);
  --late_;
  if (closed_) return;
  if (!status.ok()) {
    if (failure_.ok()) failure_ = status;
    stream_.abort();
    return;
  }
  // If it fails the stream has ended, which its own thread finds out.
  stream_.send(batch);
}

void UrgentAnswers::Close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
}

}  // namespace postcopy
