#include "pageserver/urgent_answers.h"

#include "absl/status/statusor.h"
#include "dirtytrack/start_thread.h"

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
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_.ok()) return failure_;
  }
  if (Send(batch_)) return absl::OkStatus();
  return absl::UnavailableError("the stream has ended");
}

bool UrgentAnswers::Send(PageBatch& batch) {
  const std::lock_guard<std::mutex> lock(send_mutex_);
  return stream_.send(batch);
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
  const std::lock_guard<std::mutex> lock(mutex_);
  if (run.count > kSlowPagesPerStream - late_) return false;
  if (reads_ == kSlowReadsPerStream) {
    to_read_.push_back(run);
  } else if (!SubmitLocked(run)) {
    return false;
  }
  late_ += run.count;
  return true;
}

bool UrgentAnswers::SubmitLocked(PageRun run) {
  const bool taken = readers_.Submit(
      stream_.disk, [self = shared_from_this(), run] { self->ReadLate(run); });
  if (taken) ++reads_;
  return taken;
}

void UrgentAnswers::ReadLate(PageRun run) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
  }
  std::vector<PageIndex> pages;
  for (PageIndex page = run.first; page < run.end(); page += PageCount(1)) {
    pages.push_back(page);
  }
  PageBatch batch;
  absl::Status status = stream_.read(pages, batch);
  EndLate(std::move(status), std::move(batch));
}

void UrgentAnswers::EndLate(absl::Status status, PageBatch batch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  --reads_;
  if (closed_) return;
  if (!to_read_.empty()) {
    // There is a thread, this one, so it is taken.
    SubmitLocked(to_read_.front());
    to_read_.pop_front();
  }
  if (status.ok()) status = PassOn(std::move(batch));
  if (status.ok() || !failure_.ok()) return;
  failure_ = std::move(status);
  stream_.abort();
}

absl::Status UrgentAnswers::PassOn(PageBatch batch) {
  if (!sender_.joinable()) {
    absl::StatusOr<std::thread> sender = StartThread([this] { SendLate(); });
    if (!sender.ok()) return sender.status();
    sender_ = *std::move(sender);
  }
  to_send_.push_back(std::move(batch));
  changed_.notify_all();
  return absl::OkStatus();
}

void UrgentAnswers::SendLate() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closed_ || !to_send_.empty(); });
    if (closed_) return;
    PageBatch batch = std::move(to_send_.front());
    to_send_.pop_front();
    const PageCount pages = batch.data_pages() + batch.zero_pages();
    sending_late_ = true;
    lock.unlock();
    // If it fails the stream has ended, which its own thread finds out.
    Send(batch);
    lock.lock();
    sending_late_ = false;
    late_ -= pages;
  }
}

absl::Status UrgentAnswers::Close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    // A peer that takes nothing would hold it.
    if (sending_late_) stream_.abort();
    changed_.notify_all();
  }
  // Nobody starts it any more.
  if (sender_.joinable()) sender_.join();
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

}  // namespace postcopy
