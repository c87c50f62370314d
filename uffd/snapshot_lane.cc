#include "uffd/snapshot_lane.h"

#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {

void SnapshotLane::WaitingReads::Push(const SnapshotRead& read) {
  POSTCOPY_CHECK(size_ < reads_.size());
  reads_[(first_ + size_) % reads_.size()] = read;
  ++size_;
}

SnapshotRead SnapshotLane::WaitingReads::Pop() {
  POSTCOPY_CHECK(size_ > 0);
  const SnapshotRead read = reads_[first_];
  first_ = (first_ + 1) % reads_.size();
  --size_;
  return read;
}

// Value-initialised, so that no read waits for the kernel to find a page.
SnapshotLane::Pool::Pool(const BufferPool& pool, size_t capacity)
    : buffer_bytes(pool.buffer_bytes),
      memory(std::make_unique<AlignedPage[]>(
          pool.buffers * PagesIn(pool.buffer_bytes).value())),
      waiting(pool.buffers > 0 ? capacity : 0) {}

SnapshotLane::SnapshotLane(const Limits& limits, SnapshotFile file,
                           std::unique_ptr<ReadRing> ring, Deliver deliver,
                           Fail fail)
    : limits_(limits),
      ring_(std::move(ring)),
      deliver_(std::move(deliver)),
      fail_(std::move(fail)),
      file_(std::move(file)),
      results_(RingDepth(limits)),
      small_(limits.small, limits.max_outstanding),
      large_(limits.large, limits.max_outstanding) {
  AddSlots(&small_, limits.small.buffers);
  AddSlots(&large_, limits.large.buffers);
  answered_.reserve(slots_.size());
}

SnapshotLane::~SnapshotLane() { POSTCOPY_CHECK(!thread_.joinable()); }

void SnapshotLane::AddSlots(Pool* pool, uint32_t count) {
  const uint64_t pages = PagesIn(pool->buffer_bytes).value();
  for (uint32_t i = 0; i < count; ++i) {
    pool->free.push_back(static_cast<uint32_t>(slots_.size()));
    slots_.push_back({.buffer = absl::MakeSpan(pool->memory[i * pages].bytes,
                                               pool->buffer_bytes.value())});
  }
}

SnapshotLane::Pool& SnapshotLane::PoolOf(const SnapshotRead& read) {
  return BytesIn(read.pages.count) <= small_.buffer_bytes ? small_ : large_;
}

SnapshotLane::Pool& SnapshotLane::PoolOfSlot(uint32_t slot) {
  return slot < limits_.small.buffers ? small_ : large_;
}

absl::Status SnapshotLane::Start() {
  absl::StatusOr<std::thread> thread = StartThread([this] { Run(); });
  if (!thread.ok()) return thread.status();
  thread_ = *std::move(thread);
  return absl::OkStatus();
}

absl::Status SnapshotLane::Request(absl::Span<const SnapshotRead> reads) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!refusal_.ok()) return refusal_;
    if (reads.size() > limits_.max_outstanding - outstanding_) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the snapshot source has ", outstanding_, " of at most ",
          limits_.max_outstanding, " reads to answer; ask when it has"));
    }
    outstanding_ += reads.size();
    for (const SnapshotRead& read : reads) PoolOf(read).waiting.Push(read);
  }
  ring_->Wake();
  return absl::OkStatus();
}

void SnapshotLane::Refuse(absl::Status why) {
  POSTCOPY_CHECK(!why.ok());
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (refusal_.ok()) refusal_ = std::move(why);
  }
  ring_->Wake();
}

void SnapshotLane::Join() {
  if (thread_.joinable()) thread_.join();
}

void SnapshotLane::Run() {
  absl::Status status;
  while (status.ok() && !Refused()) status = RunOnce();
  // Before the reads under way are awaited: a disk that fails may take long.
  if (!status.ok()) fail_(std::move(status));
  Drain();
}

bool SnapshotLane::Refused() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !refusal_.ok();
}

absl::Status SnapshotLane::RunOnce() {
  absl::Status status = StartReads(&small_);
  if (status.ok()) status = StartReads(&large_);
  // Holes, which need not wait for what is being read.
  if (status.ok()) status = DeliverAnswer();
  if (status.ok()) status = AwaitReads();
  if (status.ok()) status = DeliverAnswer();
  return status;
}

absl::Status SnapshotLane::StartReads(Pool* pool) {
  while (const std::optional<SnapshotRead> read = NextRead(pool)) {
    const uint32_t slot = pool->free.back();
    pool->free.pop_back();
    const absl::Status status = StartRead(slot, *read);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::optional<SnapshotRead> SnapshotLane::NextRead(Pool* pool) {
  if (pool->free.empty()) return std::nullopt;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (pool->waiting.size() == 0 || !refusal_.ok()) return std::nullopt;
  return pool->waiting.Pop();
}

absl::Status SnapshotLane::StartRead(uint32_t slot, const SnapshotRead& read) {
  const ByteCount length = BytesIn(read.pages.count);
  // O_DIRECT wants both aligned; the length is one of whole pages.
  const bool direct =
      file_.direct_fd() >= 0 && read.file_offset % kPageSize == 0;
  slots_[slot] = {
      .buffer = slots_[slot].buffer, .read = read, .direct = direct};
  const absl::StatusOr<bool> hole = file_.IsHole(read.file_offset, length);
  if (!hole.ok()) return Failure(slots_[slot], hole.status().message());
  if (!*hole) {
    Continue(slot);
    return absl::OkStatus();
  }
  AddRun({read.pages, {}});
  return EndRead(slot);
}

void SnapshotLane::Continue(uint32_t slot) {
  const Slot& state = slots_[slot];
  const size_t length = BytesIn(state.read.pages.count).value();
  ring_->Read(
      slot, state.direct ? file_.direct_fd() : file_.fd(),
      state.read.file_offset + state.bytes_read,
      state.buffer.subspan(state.bytes_read, length - state.bytes_read));
  ++under_way_;
}

absl::Status SnapshotLane::AwaitReads() {
  const absl::StatusOr<size_t> count = ring_->Wait(absl::MakeSpan(results_));
  if (!count.ok()) return count.status();
  under_way_ -= *count;
  for (size_t i = 0; i < *count; ++i) {
    const absl::Status status = OnResult(results_[i]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status SnapshotLane::OnResult(const ReadRing::Result& result) {
  Slot& slot = slots_[result.tag];
  if (result.result < 0) return Retry(result.tag, -result.result);
  if (result.result == 0) {
    return Failure(slot, "the file ends there: somebody has truncated it");
  }
  slot.bytes_read += static_cast<size_t>(result.result);
  if (slot.bytes_read == BytesIn(slot.read.pages.count).value()) {
    return AddContent(result.tag);
  }
  // The rest need not be aligned as O_DIRECT wants it.
  slot.direct = false;
  Continue(result.tag);
  return absl::OkStatus();
}

absl::Status SnapshotLane::Retry(uint32_t slot, int error) {
  Slot& state = slots_[slot];
  const bool misaligned = error == EINVAL && state.direct;
  const bool passing = error == EAGAIN || error == EINTR || error == ENOMEM;
  const bool again = passing && state.retries < kMaxReadRetries;
  if (!misaligned && !again) {
    return Failure(state, ::strerrordesc_np(error));
  }
  ++state.retries;
  // The host is short of memory: kMaxReadRetries of these are a second or so.
  constexpr timespec kPause = {.tv_sec = 0, .tv_nsec = 1'000'000};
  if (error == ENOMEM) ::nanosleep(&kPause, nullptr);
  if (misaligned) state.direct = false;
  Continue(slot);
  return absl::OkStatus();
}

absl::Status SnapshotLane::AddContent(uint32_t slot) {
  const SnapshotRead& read = slots_[slot].read;
  const PageCount step = PagesIn(read.page_size);
  const absl::Span<const uint8_t> content = slots_[slot].buffer;
  for (PageCount at; at < read.pages.count; at += step) {
    const absl::Span<const uint8_t> page =
        content.subspan(BytesIn(at).value(), read.page_size.value());
    AddRun({{read.pages.first + at, step},
            IsZero(page) ? absl::Span<const uint8_t>() : page});
  }
  return EndRead(slot);
}

void SnapshotLane::AddRun(const ReceivedRun& run) {
  ReceivedRun* const last =
      answer_runs_ > 0 ? &answer_[answer_runs_ - 1] : nullptr;
  const bool joins = last != nullptr && last->pages.end() == run.pages.first &&
                     last->data.empty() == run.data.empty() &&
                     last->data.data() + last->data.size() == run.data.data();
  if (!joins) {
    POSTCOPY_CHECK(answer_runs_ < answer_.size());
    answer_[answer_runs_++] = run;
    return;
  }
  last->pages.count += run.pages.count;
  last->data = absl::MakeConstSpan(last->data.data(),
                                   last->data.size() + run.data.size());
}

absl::Status SnapshotLane::EndRead(uint32_t slot) {
  answered_.push_back(slot);
  if (answered_.size() < limits_.max_reads_per_answer) return absl::OkStatus();
  return DeliverAnswer();
}

absl::Status SnapshotLane::DeliverAnswer() {
  if (answered_.empty()) return absl::OkStatus();
  // Behind the reads: a VM must not get pages of two files.
  absl::Status status = file_.CheckUnchanged();
  if (absl::IsDataLoss(status)) {
    return absl::DataLossError(
        absl::StrCat(status.message(), "; restore the VM from an intact copy"));
  }
  if (!status.ok()) return status;
  if (TakeOutstanding(answered_.size())) {
    status = deliver_(absl::MakeConstSpan(answer_.data(), answer_runs_));
  }
  answer_runs_ = 0;
  for (const uint32_t slot : answered_) PoolOfSlot(slot).free.push_back(slot);
  answered_.clear();
  return status;
}

bool SnapshotLane::TakeOutstanding(size_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!refusal_.ok()) return false;
  outstanding_ -= count;
  return true;
}

void SnapshotLane::Drain() {
  while (under_way_ > 0) {
    const absl::StatusOr<size_t> count = ring_->Wait(absl::MakeSpan(results_));
    if (!count.ok()) break;
    under_way_ -= *count;
  }
  if (under_way_ == 0) return;
  // The kernel may still write there: better lost than given to others.
  [[maybe_unused]] const auto* small = small_.memory.release();
  [[maybe_unused]] const auto* large = large_.memory.release();
}

absl::Status SnapshotLane::Failure(const Slot& slot,
                                   absl::string_view problem) const {
  return absl::DataLossError(absl::StrCat(
      "cannot read byte ", slot.read.file_offset + slot.bytes_read, " of ",
      file_.path(), " (", ToString(slot.read.pages), "): ", problem,
      "; restore the VM from an intact copy of its snapshot"));
}

}  // namespace postcopy
