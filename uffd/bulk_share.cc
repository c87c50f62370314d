#include "uffd/bulk_share.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

// Between two looks at the clock of who waits.
constexpr int64_t kShortestWaitNanos = kNanosPerMilli;

}  // namespace

absl::Status CheckBulkRequests(size_t requests) {
  if (requests >= kMinBulkRequests && requests <= kMaxBulkRequests) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--bulk_requests must be ", kMinBulkRequests, " to ",
                   kMaxBulkRequests, ", not ", requests));
}

BulkShare::BulkShare(size_t requests, Clock* clock)
    : clock_(*clock), requests_(requests), free_(requests) {}

std::optional<BulkShare::Permit> BulkShare::Acquire(Member* member) {
  std::unique_lock<std::mutex> lock(mutex_);
  int64_t now_ns = clock_.NowNanos();
  Turn(now_ns);
  if (!free_.empty()) return Take(now_ns);
  if (!member->interrupted_) {
    queue_.splice(queue_.end(), member->place_);
    member->waiting_ = true;
    ++waited_;
  }
  while (member->waiting_) {
    // Whoever waits ends what has expired: the others may all hang.
    const int64_t wait_ns =
        std::max(taken_.front().expires_ns - now_ns, kShortestWaitNanos);
    member->changed_.wait_for(lock, std::chrono::nanoseconds(wait_ns));
    now_ns = clock_.NowNanos();
    Turn(now_ns);
  }
  if (!member->granted_.has_value()) member->interrupted_ = false;
  return std::exchange(member->granted_, std::nullopt);
}

void BulkShare::Interrupt(Member* member) {
  const std::lock_guard<std::mutex> lock(mutex_);
  member->interrupted_ = true;
  if (!member->waiting_) return;
  Leave(member);
}

void BulkShare::Release(const Permit& permit) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (permit.number_ != 0 && permit.slot_->number == permit.number_) {
    Free(permit.slot_);
  }
  Turn(clock_.NowNanos());
}

BulkShare::Permit BulkShare::Take(int64_t now_ns) {
  Permit permit;
  permit.slot_ = free_.begin();
  permit.number_ = ++last_number_;
  taken_.splice(taken_.end(), free_, free_.begin());
  *permit.slot_ = {permit.number_, now_ns + kBulkPermitNanos};
  return permit;
}

void BulkShare::Free(std::list<Slot>::iterator slot) {
  slot->number = 0;
  free_.splice(free_.begin(), taken_, slot);
}

void BulkShare::Turn(int64_t now_ns) {
  while (!taken_.empty() && taken_.front().expires_ns <= now_ns) {
    ++expired_;
    Free(taken_.begin());
  }
  while (!free_.empty() && !queue_.empty()) {
    Member* const next = queue_.front();
    next->granted_ = Take(now_ns);
    Leave(next);
  }
}

void BulkShare::Leave(Member* member) {
  member->place_.splice(member->place_.end(), queue_, member->at_);
  member->waiting_ = false;
  member->changed_.notify_one();
}

bool BulkShare::HasPlenty() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return 2 * free_.size() > requests_;
}

size_t BulkShare::in_flight() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return taken_.size();
}

size_t BulkShare::waiting() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return queue_.size();
}

uint64_t BulkShare::granted() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return last_number_;
}

uint64_t BulkShare::waited() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return waited_;
}

uint64_t BulkShare::expired() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return expired_;
}

}  // namespace postcopy
