#include "uffd/background_pull.h"

#include <algorithm>
#include <utility>

#include "dirtytrack/start_thread.h"

namespace postcopy {

bool RoomForBulk(absl::Span<const PageRun> in_flight) {
  constexpr PageCount kPagesMax{(kFullBulkOutstanding - 1) *
                                kMaxBulkPages.value()};
  if (in_flight.size() < kLargeBulkOutstanding) return true;
  PageCount pages;
  for (const PageRun& run : in_flight) pages += run.count;
  return in_flight.size() < kMaxBulkOutstanding && pages <= kPagesMax;
}

BackgroundPull::BackgroundPull(const DestinationRam* ram, PageState* state,
                               PullOrder* order, Clock* clock,
                               uint64_t bytes_per_second,
                               std::function<void(absl::Status)> on_end,
                               BulkShare* share)
    : ram_(*ram),
      largest_request_(std::max(kMaxBulkPages, ram->largest_unit())),
      state_(*state),
      order_(*order),
      clock_(*clock),
      on_end_(std::move(on_end)),
      share_(share),
      // More than is taken at a time: with a bucket that is full when a thread
      // wakes up late, each wait would lose what accrued meanwhile.
      bucket_(bytes_per_second, BytesIn(largest_request_ + kMaxBulkPages),
              clock->NowNanos()) {
  in_flight_.reserve(kMaxBulkOutstanding);
  permits_.reserve(kMaxBulkOutstanding);
}

BackgroundPull::~BackgroundPull() { Stop(); }

absl::Status BackgroundPull::Start() {
  absl::StatusOr<std::thread> thread = StartThread([this] { Run(); });
  if (!thread.ok()) return thread.status();
  thread_ = *std::move(thread);
  return absl::OkStatus();
}

void BackgroundPull::Enable() {
  const std::lock_guard<std::mutex> lock(mutex_);
  enabled_ = true;
  changed_.notify_all();
}

void BackgroundPull::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    WakeThread();
  }
  if (thread_.joinable()) thread_.join();
}

void BackgroundPull::SetSource(PageSource* source) {
  const std::lock_guard<std::mutex> source_lock(source_mutex_);
  source_ = source;
  const std::lock_guard<std::mutex> lock(mutex_);
  source_works_ = source != nullptr;
  exhausted_ = false;
  ForgetAll();
  WakeThread();
}

void BackgroundPull::SetLimit(uint64_t bytes_per_second) {
  const std::lock_guard<std::mutex> lock(mutex_);
  bucket_.SetRate(bytes_per_second, clock_.NowNanos());
}

void BackgroundPull::OnAnswer(PageIndex first, ByteCount zero_bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto answered =
      std::find_if(in_flight_.begin(), in_flight_.end(),
                   [first](PageRun run) { return run.Contains(first); });
  if (answered == in_flight_.end()) return;
  // A run of zeros may be longer than what was asked for.
  bucket_.Refund(std::min(zero_bytes, BytesIn(answered->count)));
  Forget(answered - in_flight_.begin());
  exhausted_ = false;
  changed_.notify_all();
}

void BackgroundPull::OnComplete() {
  const std::lock_guard<std::mutex> lock(mutex_);
  WakeThread();
}

void BackgroundPull::Fail(absl::Status error) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_.ok() || stopping_) return;
    error_ = error;
    WakeThread();
    if (!reported_) return;  // the thread does it
  }
  on_end_(std::move(error));
}

void BackgroundPull::Run() {
  while (AwaitSlot()) {
    const std::optional<BulkShare::Permit> turn = AwaitTurn();
    if (turn.has_value()) AskOnce(*turn);
  }
  absl::Status status;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ForgetAll();
    if (stopping_) return;
    status = error_;
    reported_ = true;
  }
  on_end_(std::move(status));
}

bool BackgroundPull::AwaitSlot() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] {
    return Ended() || (enabled_ && source_works_ && !exhausted_ && HasRoom());
  });
  return !Ended();
}

// More than kFullBulkOutstanding only while others have no need of them: with
// a slow source they would be kept for long. An answer makes this look again.
bool BackgroundPull::HasRoom() const {
  if (!RoomForBulk(in_flight_)) return false;
  return share_ == nullptr || in_flight_.size() < kFullBulkOutstanding ||
         share_->HasPlenty();
}

std::optional<BulkShare::Permit> BackgroundPull::AwaitTurn() {
  if (share_ == nullptr) return BulkShare::Permit();
  return share_->Acquire(&member_);
}

bool BackgroundPull::Ended() const {
  return stopping_ || !error_.ok() || state_.missing().empty();
}

void BackgroundPull::AskOnce(const BulkShare::Permit& permit) {
  int64_t wait_ns = 0;
  {
    const std::lock_guard<std::mutex> source_lock(source_mutex_);
    const std::optional<PageRun> run = Claim(permit, &wait_ns);
    if (run.has_value()) {
      requests_.fetch_add(1, std::memory_order_relaxed);
      // Not under mutex_: the answer may come from within.
      if (!source_->RequestBulk(*run).ok()) Refused(*run);
      return;
    }
  }
  GiveBack(permit);  // others need not wait for this VM's limit
  clock_.SleepFor(std::min(wait_ns, kMaxLimitSleepNanos));
}

std::optional<PageRun> BackgroundPull::Claim(const BulkShare::Permit& permit,
                                             int64_t* wait_ns) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (source_ == nullptr || Ended()) return std::nullopt;
  // Before the order is asked: it would go on behind a run that is not sent.
  const ByteCount most = BytesIn(largest_request_);
  *wait_ns = bucket_.Take(most, clock_.NowNanos());
  if (*wait_ns > 0) return std::nullopt;
  std::optional<PageRun> run =
      order_.NextRun(state_, in_flight_, kMaxBulkPages);
  if (run.has_value()) run = ram_.RequestFor(*run);
  exhausted_ = !run.has_value();
  bucket_.Refund(run.has_value() ? most - BytesIn(run->count) : most);
  if (run.has_value()) {
    in_flight_.push_back(*run);
    permits_.push_back(permit);
  }
  return run;
}

void BackgroundPull::Refused(PageRun run) {
  failures_.fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard<std::mutex> lock(mutex_);
  source_works_ = false;  // until SetSource: else this would spin
  bucket_.Refund(BytesIn(run.count));
  const auto asked = std::find(in_flight_.begin(), in_flight_.end(), run);
  if (asked != in_flight_.end()) Forget(asked - in_flight_.begin());
}

void BackgroundPull::WakeThread() {
  changed_.notify_all();
  if (share_ != nullptr) share_->Interrupt(&member_);
}

void BackgroundPull::Forget(size_t index) {
  GiveBack(permits_[index]);
  in_flight_.erase(in_flight_.begin() + index);
  permits_.erase(permits_.begin() + index);
}

void BackgroundPull::ForgetAll() {
  while (!in_flight_.empty()) Forget(in_flight_.size() - 1);
}

void BackgroundPull::GiveBack(const BulkShare::Permit& permit) {
  if (share_ != nullptr) share_->Release(permit);
}

}  // namespace postcopy
