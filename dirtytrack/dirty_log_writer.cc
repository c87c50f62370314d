#include "dirtytrack/dirty_log_writer.h"

#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/asymmetric_fence.h"

namespace postcopy {
namespace {

using dirty_log_internal::LockOffset;
using dirty_log_layout::kHoldsLock;
using dirty_log_layout::kLightFence;

// Words marked in one section, so that a large merge does not hold up a
// switch: some microseconds.
constexpr size_t kWordsPerSection = 1024;

constexpr int kLockTries = 1000;

}  // namespace

absl::StatusOr<DirtyLogWriter> DirtyLogWriter::Take(
    std::shared_ptr<const Memory> memory, WriterEntry entry) {
  const bool light =
      entry == WriterEntry::kLightIfPossible && RegisterForHeavyFence();
  const uint32_t pid = static_cast<uint32_t>(::getpid());
  std::lock_guard lock(memory->writers_mutex);
  for (size_t i = 0; i < kMaxDirtyLogWriters; ++i) {
    std::atomic<uint32_t>& owner = memory->writers[i].owner_pid;
    uint32_t free = 0;
    if (!owner.compare_exchange_strong(free, pid, std::memory_order_seq_cst)) {
      continue;
    }
    // The reader says so, then looks for owners: it has seen this one, or this
    // one sees that the log may be done with already.
    if (memory->state->superseded.load(std::memory_order_seq_cst) != 0) {
      owner.store(0, std::memory_order_release);
      return absl::FailedPreconditionError(
          "the VM's slots have changed, and another dirty log has been made "
          "for them: open that one");
    }
    return DirtyLogWriter(std::move(memory), i, light);
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("all ", kMaxDirtyLogWriters,
                   " writers of the dirty log are taken; let fewer threads "
                   "mark pages"));
}

bool DirtyLogWriter::LockRecord() const {
  if (!memory_->locks.has_value() || memory_->pid != ::getpid()) return false;
  // A reader that looks after dead writers holds it for a moment.
  for (int tries = 0; tries < kLockTries; ++tries) {
    if (memory_->locks->TryLock(LockOffset(index_))) return true;
    std::this_thread::yield();
  }
  return false;
}

DirtyLogWriter::DirtyLogWriter(std::shared_ptr<const Memory> memory,
                               size_t index, bool light)
    : memory_(std::move(memory)),
      record_(&memory_->writers[index]),
      index_(index),
      light_(light),
      last_slot_(&memory_->slots[0]) {
  // Even, whatever the record's last owner or a hostile one left there.
  sequence_ =
      (record_->sequence.load(std::memory_order_relaxed) + 1) & ~uint64_t{1};
  record_->sequence.store(sequence_, std::memory_order_seq_cst);
  locked_ = LockRecord();
  // A reader that does not see the flag yet has stored `active` before this
  // store, in the one order of both, and the first section reads it.
  record_->flags.store((light ? kLightFence : 0) | (locked_ ? kHoldsLock : 0),
                       std::memory_order_seq_cst);
}

DirtyLogWriter& DirtyLogWriter::operator=(DirtyLogWriter&& other) noexcept {
  if (this != &other) {
    Release();
    memory_ = std::move(other.memory_);
    record_ = other.record_;
    index_ = other.index_;
    light_ = other.light_;
    locked_ = other.locked_;
    sequence_ = other.sequence_;
    last_slot_ = other.last_slot_;
  }
  return *this;
}

void DirtyLogWriter::Release() {
  if (memory_ == nullptr) return;
  {
    std::lock_guard lock(memory_->writers_mutex);
    // In this order: a record with the flag and without the lock is a dead
    // writer's, and one without an owner is the next one's.
    record_->flags.store(0, std::memory_order_seq_cst);
    if (locked_) memory_->locks->Unlock(LockOffset(index_));
    record_->owner_pid.store(0, std::memory_order_release);
  }
  memory_.reset();
}

const DirtyLogWriter::SlotMemory* DirtyLogWriter::FindOther(SlotId id) {
  const size_t i = memory_->Find(id);
  if (i == memory_->slots.size()) return nullptr;
  return last_slot_ = &memory_->slots[i];
}

bool DirtyLogWriter::MarkRun(SlotId slot, PageRun run) {
  const SlotMemory* memory = Find(slot);
  if (memory == nullptr || run.first.value() > memory->slot.pages.value() ||
      run.count.value() > memory->slot.pages.value() - run.first.value()) {
    return false;
  }
  constexpr uint64_t kPagesPerSection =
      kWordsPerSection * PageBitmapView::kPagesPerWord;
  for (uint64_t page = run.first.value(); page < run.end().value();) {
    const uint64_t end = std::min(run.end().value(), page + kPagesPerSection);
    Enter();
    Set(*memory, [&](PageBitmapView active) {
      active.SetRun({PageIndex(page), PageCount(end - page)});
    });
    Leave();
    page = end;
  }
  return true;
}

bool DirtyLogWriter::MergeWords(SlotId slot, size_t first_word,
                                absl::Span<const uint64_t> words) {
  const SlotMemory* memory = Find(slot);
  if (memory == nullptr) return false;
  const size_t word_count = PageBitmapView::WordCount(memory->slot.pages);
  if (first_word > word_count || words.size() > word_count - first_word) {
    return false;
  }
  for (size_t begin = 0; begin < words.size(); begin += kWordsPerSection) {
    const size_t end = std::min(words.size(), begin + kWordsPerSection);
    Enter();
    const auto part = words.subspan(begin, end - begin);
    // Marking nothing must not make the slot dirty.
    if (std::any_of(part.begin(), part.end(), [](auto w) { return w != 0; })) {
      Set(*memory, [&](PageBitmapView active) {
        for (size_t i = begin; i < end; ++i) {
          if (words[i] != 0) active.OrWord(first_word + i, words[i]);
        }
      });
    }
    Leave();
  }
  return true;
}

}  // namespace postcopy
