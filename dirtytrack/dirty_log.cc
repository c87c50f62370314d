#include "dirtytrack/dirty_log.h"

#include <algorithm>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/asymmetric_fence.h"
#include "dirtytrack/liveness_locks.h"

namespace postcopy {
namespace {

using dirty_log_internal::LockOffset;
using dirty_log_internal::OpenMemory;
using dirty_log_layout::kHoldsLock;
using dirty_log_layout::kLightFence;
using dirty_log_layout::kNotLogging;
using dirty_log_layout::SlotRecord;
using dirty_log_layout::WriterRecord;

// How the reader waits for a writer: a section is normally over within the
// spins; the yields let a preempted writer go on; then it is worth sleeping.
constexpr int kGraceSpins = 1000;
constexpr int kGraceYields = 100;
constexpr int64_t kGraceSleepNanos = 50 * kNanosPerMicro;

void PauseCpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

absl::Status StuckWriter(size_t index, const WriterRecord& record) {
  return absl::UnavailableError(absl::StrCat(
      "the dirty log cannot be switched: writer ", index, " (process ",
      record.owner_pid.load(std::memory_order_relaxed),
      " by its own count) has been marking pages for more than ",
      kGracePeriodMaxNanos / kNanosPerMilli,
      " ms without a pause; no dirty page is lost; see whether that process "
      "is stopped, then try again"));
}

}  // namespace

std::ostream& operator<<(std::ostream& out, SwitchResult result) {
  return out << (result == SwitchResult::kSwitched ? "kSwitched" : "kClean");
}

DirtyLogSet::DirtyLogSet(UniqueFd fd, std::shared_ptr<const Memory> memory,
                         bool settled, Clock* clock)
    : fd_(std::move(fd)),
      memory_(std::move(memory)),
      clock_(clock),
      reader_(memory_->slots.size()),
      settled_(settled) {
  // A description of its own: the locks of this process's writers are not ours.
  if (auto reaper = LivenessLocks::Open(fd_.get()); reaper.ok()) {
    reaper_ = *std::move(reaper);
  }
  for (size_t i = 0; i < reader_.size(); ++i) {
    const SlotMemory& slot = memory_->slots[i];
    slots_.push_back(slot.slot);
    const uint32_t state = slot.record->active.load(std::memory_order_seq_cst);
    reader_[i].active = state & 1;
    reader_[i].logging = (state & kNotLogging) == 0;
  }
}

absl::StatusOr<DirtyLogSet> DirtyLogSet::Create(
    absl::Span<const DirtyLogSlot> slots, Clock* clock) {
  return CreateOver(slots, {}, clock);
}

absl::StatusOr<DirtyLogSet> DirtyLogSet::CreateOver(
    absl::Span<const DirtyLogSlot> slots,
    absl::Span<const CallerBitmaps> bitmaps, Clock* clock) {
  absl::StatusOr<OpenMemory> made =
      dirty_log_internal::CreateMemory(slots, bitmaps);
  if (!made.ok()) return made.status();
  return DirtyLogSet(std::move(made->fd), std::move(made->memory),
                     /*settled=*/true, clock);
}

absl::StatusOr<DirtyLogSet> DirtyLogSet::Open(
    UniqueFd fd, absl::Span<const DirtyLogSlot> expected, Clock* clock) {
  absl::StatusOr<OpenMemory> opened =
      dirty_log_internal::OpenMemoryOf(std::move(fd), expected);
  if (!opened.ok()) return opened.status();
  return DirtyLogSet(std::move(opened->fd), std::move(opened->memory),
                     /*settled=*/false, clock);
}

absl::StatusOr<DirtyLogWriter> DirtyLogSet::NewWriter(WriterEntry entry) const {
  return DirtyLogWriter::Take(memory_, entry);
}

absl::StatusOr<size_t> DirtyLogSet::Find(SlotId slot) const {
  const size_t i = memory_->Find(slot);
  if (i < memory_->slots.size()) return i;
  return absl::NotFoundError(
      absl::StrCat("there is no dirty log for ", ToString(slot)));
}

absl::StatusOr<size_t> DirtyLogSet::FindLogging(SlotId slot) const {
  absl::StatusOr<size_t> i = Find(slot);
  if (i.ok() && !reader_[*i].logging) {
    return absl::FailedPreconditionError(
        absl::StrCat("writes to ", ToString(slot),
                     " are not being logged; start logging first"));
  }
  return i;
}

absl::StatusOr<size_t> DirtyLogSet::FindSettled(SlotId slot) const {
  absl::StatusOr<size_t> i = FindLogging(slot);
  if (i.ok() && (!settled_ || reader_[*i].pending)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the retired dirty log of ", ToString(slot), " may still be written ",
        "to; complete the switch first"));
  }
  return i;
}

bool DirtyLogSet::Flip(size_t i) {
  ReaderState& state = reader_[i];
  if (!state.logging) return false;
  if (state.pending) return true;
  SlotRecord* record = memory_->slots[i].record;
  if (record->dirty[state.active].load(std::memory_order_acquire) == 0) {
    return false;
  }
  state.active ^= 1;
  state.pending = true;
  // See DirtyLogWriter::Enter. Also hands the drained bitmap to the writers.
  record->active.store(state.active, std::memory_order_seq_cst);
  return true;
}

bool DirtyLogSet::AnyLightWriter() const {
  for (size_t i = 0; i < kMaxDirtyLogWriters; ++i) {
    const uint32_t flags =
        memory_->writers[i].flags.load(std::memory_order_seq_cst);
    if (flags & kLightFence) return true;
  }
  return false;
}

absl::Status DirtyLogSet::AwaitWriters() {
  if (AnyLightWriter()) {
    if (absl::Status s = HeavyFence(); !s.ok()) return s;
  }
  // One deadline for all of them, and no look at the clock if none is inside.
  int64_t deadline = -1;
  for (size_t i = 0; i < kMaxDirtyLogWriters; ++i) {
    const WriterRecord& record = memory_->writers[i];
    const uint64_t entered = record.sequence.load(std::memory_order_seq_cst);
    if (entered % 2 == 0) continue;
    if (deadline < 0) deadline = clock_->NowNanos() + kGracePeriodMaxNanos;
    for (int tries = 0;
         record.sequence.load(std::memory_order_acquire) == entered; ++tries) {
      if (tries < kGraceSpins) {
        PauseCpu();
      } else if (tries < kGraceSpins + kGraceYields) {
        std::this_thread::yield();
      } else if (ReapIfDead(i)) {
        break;
      } else if (clock_->NowNanos() < deadline) {
        clock_->SleepFor(kGraceSleepNanos);
      } else {
        return StuckWriter(i, record);
      }
    }
  }
  return absl::OkStatus();
}

namespace {

// Its owner said that it holds the record's lock, and has not left.
bool SaysItHoldsLock(const WriterRecord& record) {
  return record.owner_pid.load(std::memory_order_acquire) != 0 &&
         (record.flags.load(std::memory_order_seq_cst) & kHoldsLock) != 0;
}

}  // namespace

bool DirtyLogSet::ReapIfDead(size_t i) {
  WriterRecord& record = memory_->writers[i];
  if (!reaper_.has_value() || !SaysItHoldsLock(record)) return false;
  if (!reaper_->TryLock(LockOffset(i))) return false;
  // Only now: who said it before may have left, and another may have come. A
  // writer says it after it has got the lock, which is ours, and takes it back
  // before it gives the lock up.
  const bool dead = SaysItHoldsLock(record);
  if (dead) {
    record.flags.store(0, std::memory_order_seq_cst);
    const uint64_t left = record.sequence.load(std::memory_order_relaxed);
    record.sequence.store((left + 1) & ~uint64_t{1}, std::memory_order_seq_cst);
    record.owner_pid.store(0, std::memory_order_release);
    ++writers_lost_;
  }
  reaper_->Unlock(LockOffset(i));
  return dead;
}

uint64_t DirtyLogSet::ReapDeadWriters() {
  for (size_t i = 0; i < kMaxDirtyLogWriters; ++i) ReapIfDead(i);
  return writers_lost_;
}

bool DirtyLogSet::HasWriters() const {
  for (size_t i = 0; i < kMaxDirtyLogWriters; ++i) {
    const WriterRecord& record = memory_->writers[i];
    // One order with DirtyLogWriter::Take's look at `superseded`.
    if (record.owner_pid.load(std::memory_order_seq_cst) != 0) return true;
  }
  return false;
}

void DirtyLogSet::Supersede() {
  memory_->state->superseded.store(1, std::memory_order_seq_cst);
}

absl::Status DirtyLogSet::SettleAdopted() {
  if (settled_) return absl::OkStatus();
  absl::Status status = AwaitWriters();
  settled_ = status.ok();
  return status;
}

absl::Status DirtyLogSet::StartLogging(SlotId slot) {
  absl::StatusOr<size_t> i = Find(slot);
  if (!i.ok()) return i.status();
  ReaderState& state = reader_[*i];
  if (state.logging) return absl::OkStatus();
  // A stop that failed may have left marks.
  if (absl::Status s = Empty(*i); !s.ok()) return s;
  state.logging = true;
  memory_->slots[*i].record->active.store(state.active,
                                          std::memory_order_seq_cst);
  return absl::OkStatus();
}

absl::Status DirtyLogSet::StopLogging(SlotId slot) {
  absl::StatusOr<size_t> i = Find(slot);
  if (!i.ok()) return i.status();
  ReaderState& state = reader_[*i];
  state.logging = false;
  memory_->slots[*i].record->active.store(state.active | kNotLogging,
                                          std::memory_order_seq_cst);
  return Empty(*i);
}

absl::Status DirtyLogSet::Empty(size_t i) {
  if (absl::Status s = AwaitWriters(); !s.ok()) return s;
  const SlotMemory& slot = memory_->slots[i];
  for (int b = 0; b < 2; ++b) {
    if (slot.record->dirty[b].load(std::memory_order_acquire) == 0) continue;
    slot.bitmaps[b].ClearRun({PageIndex(0), slot.slot.pages});
    slot.record->dirty[b].store(0, std::memory_order_release);
  }
  reader_[i].pending = false;
  return absl::OkStatus();
}

absl::StatusOr<SwitchResult> DirtyLogSet::Switch(SlotId slot) {
  absl::StatusOr<size_t> i = FindLogging(slot);
  if (!i.ok()) return i.status();
  if (absl::Status s = SettleAdopted(); !s.ok()) return s;
  if (!Flip(*i)) return SwitchResult::kClean;
  if (absl::Status s = AwaitWriters(); !s.ok()) return s;
  reader_[*i].pending = false;
  return SwitchResult::kSwitched;
}

absl::StatusOr<SwitchResult> DirtyLogSet::SwitchAll() {
  if (absl::Status s = SettleAdopted(); !s.ok()) return s;
  bool any = false;
  for (size_t i = 0; i < reader_.size(); ++i) any |= Flip(i);
  if (!any) return SwitchResult::kClean;
  if (absl::Status s = Settle(); !s.ok()) return s;
  return SwitchResult::kSwitched;
}

absl::Status DirtyLogSet::Settle() {
  const bool any =
      !settled_ || std::any_of(reader_.begin(), reader_.end(),
                               [](const ReaderState& s) { return s.pending; });
  if (!any) return absl::OkStatus();
  if (absl::Status s = AwaitWriters(); !s.ok()) return s;
  for (ReaderState& state : reader_) state.pending = false;
  settled_ = true;
  return absl::OkStatus();
}

absl::StatusOr<UserDirtyLog> DirtyLogSet::GetUserDirtyLog(SlotId slot) const {
  absl::StatusOr<size_t> i = FindLogging(slot);
  if (!i.ok()) return i.status();
  const SlotMemory& memory = memory_->slots[*i];
  return UserDirtyLog{.fd = fd_.get(),
                      .offsets = {memory.record->bitmap_offset[0],
                                  memory.record->bitmap_offset[1]},
                      .bitmaps = memory.bitmaps,
                      .active = reader_[*i].active};
}

absl::Status DirtyLogSet::GetDirtyLog(SlotId slot, absl::Span<uint64_t> words) {
  absl::StatusOr<size_t> i = FindLogging(slot);
  if (!i.ok()) return i.status();
  const SlotMemory& memory = memory_->slots[*i];
  if (words.size() != PageBitmapView::WordCount(memory.slot.pages)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a dirty log of ", ToString(memory.slot.pages), " takes ",
                     PageBitmapView::WordCount(memory.slot.pages),
                     " words, not ", words.size()));
  }
  if (absl::Status s = Settle(); !s.ok()) return s;
  std::fill(words.begin(), words.end(), 0);
  const PageBitmapView copy(
      reinterpret_cast<std::atomic<uint64_t>*>(words.data()),
      memory.slot.pages);
  // What earlier switches have left there, and then what is new.
  if (absl::StatusOr<PageCount> left = Drain(slot, copy, PageIndex(0));
      !left.ok()) {
    return left.status();
  }
  const absl::StatusOr<SwitchResult> result = Switch(slot);
  if (!result.ok()) {
    GiveBack(*i, copy);
    return result.status();
  }
  return Drain(slot, copy, PageIndex(0)).status();
}

void DirtyLogSet::GiveBack(size_t i, PageBitmapView taken) {
  const SlotMemory& slot = memory_->slots[i];
  const uint32_t active = reader_[i].active;
  if (!taken.Any()) return;
  slot.bitmaps[active].MergeFrom(taken);
  slot.record->dirty[active].store(1, std::memory_order_release);
}

absl::StatusOr<PageBitmapView> DirtyLogSet::Retired(SlotId slot) const {
  absl::StatusOr<size_t> i = FindSettled(slot);
  if (!i.ok()) return i.status();
  return memory_->slots[*i].bitmaps[reader_[*i].active ^ 1];
}

absl::StatusOr<PageCount> DirtyLogSet::Drain(SlotId slot, PageBitmapView into,
                                             PageIndex at) {
  absl::StatusOr<size_t> i = FindSettled(slot);
  if (!i.ok()) return i.status();
  const SlotMemory& memory = memory_->slots[*i];
  const uint64_t room = into.pages().value();
  if (at.value() > room || memory.slot.pages.value() > room - at.value()) {
    return absl::OutOfRangeError(absl::StrCat(
        ToString(slot), " with ", ToString(memory.slot.pages), " at ",
        ToString(at), " does not fit in a bitmap of ", ToString(into.pages())));
  }
  const uint32_t retired = reader_[*i].active ^ 1;
  std::atomic<uint32_t>& dirty = memory.record->dirty[retired];
  if (dirty.load(std::memory_order_acquire) == 0) return PageCount(0);
  const PageCount set = into.MoveFrom(memory.bitmaps[retired], at);
  // Last: whoever adopts the log after a crash in between sees it dirty.
  dirty.store(0, std::memory_order_release);
  return set;
}

}  // namespace postcopy
