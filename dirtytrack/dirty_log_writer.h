// Marking pages in a dirty log.
#ifndef DIRTYTRACK_DIRTY_LOG_WRITER_H_
#define DIRTYTRACK_DIRTY_LOG_WRITER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/asymmetric_fence.h"
#include "dirtytrack/dirty_log_layout.h"
#include "dirtytrack/dirty_log_memory.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"

namespace postcopy {

// How a writer enters its section (dirty_log_layout.h).
enum class WriterEntry {
  // By a plain store, if the kernel lets the reader fence for both, else as
  // kLocked: marking a page that is dirty already costs no locked instruction.
  kLightIfPossible,
  // By a locked instruction: for threads that ThreadSanitizer watches, which
  // knows nothing of membarrier(2).
  kLocked,
};

// Marks pages. Lock-free: no call blocks, allocates or makes a system call.
// One thread at a time; every marking thread takes its own (DirtyLogSet::
// NewWriter). Keeps the memory mapped, so it may outlive its set.
//
// The bytes of a page that were written before a call are visible to whoever
// finds the page's bit after the call, also if the bit was set already.
//
// A slot that does not exist or a page beyond its end marks nothing and
// returns false: KVM's own log may name a slot the reader was not told of,
// and it is for the caller to decide what that means. A slot that is not
// logging marks nothing and returns true.
class DirtyLogWriter {
 public:
  DirtyLogWriter(DirtyLogWriter&& other) noexcept = default;
  DirtyLogWriter& operator=(DirtyLogWriter&& other) noexcept;
  // Gives the writer's record back. A process that ends without this may have
  // written pages that it has not marked: see DirtyLogSet::ReapDeadWriters.
  ~DirtyLogWriter() { Release(); }

  // Marks `page` of the slot.
  bool Mark(SlotId slot, PageIndex page);

  // Marks the pages of `run`, in the slot.
  bool MarkRun(SlotId slot, PageRun run);

  // Marks the pages whose bits are set in `words`, a part of a bitmap in KVM's
  // layout; words[0] is word `first_word` of the slot. Bits beyond the slot's
  // last page in its last word are ignored.
  bool MergeWords(SlotId slot, size_t first_word,
                  absl::Span<const uint64_t> words);

  // True if the VM's slots have changed and another log has been made for them:
  // open that one and let this writer go. Until then its marks still count.
  bool superseded() const {
    return memory_->state->superseded.load(std::memory_order_acquire) != 0;
  }

 private:
  friend class DirtyLogSet;
  friend class DirtyLogWriterPeer;  // tests: stand still inside a section

  using Memory = dirty_log_internal::Memory;
  using SlotMemory = dirty_log_internal::SlotMemory;

  // Takes a record; RESOURCE_EXHAUSTED if all are taken, FAILED_PRECONDITION if
  // the log is superseded.
  static absl::StatusOr<DirtyLogWriter> Take(
      std::shared_ptr<const Memory> memory, WriterEntry entry);

  DirtyLogWriter(std::shared_ptr<const Memory> memory, size_t index,
                 bool light);
  bool LockRecord() const;
  void Release();

  void Enter();
  void Leave();
  // The slot's memory, or null.
  const SlotMemory* Find(SlotId id);
  const SlotMemory* FindOther(SlotId id);
  // Marks a page of the slot. REQUIRES: inside a section.
  static void MarkOne(const SlotMemory& slot, PageIndex page);
  // Calls set_bits(PageBitmapView) with the slot's active bitmap, if it is
  // logging, and makes it dirty. REQUIRES: inside a section; sets any bit.
  template <typename SetBits>
  static void Set(const SlotMemory& slot, SetBits set_bits);

  // Null after a move.
  std::shared_ptr<const Memory> memory_;
  dirty_log_layout::WriterRecord* record_;
  size_t index_;           // of the record
  bool light_;             // enters by a plain store
  bool locked_ = false;    // holds the record's lock
  uint64_t sequence_ = 0;  // what record_->sequence holds outside of sections
  const SlotMemory* last_slot_;  // callers mark the same slot again and again
};

// What runs for every single mark is inline.

inline void DirtyLogWriter::Enter() {
  // This exchange and the reader's store to `active` are two halves of
  // Dekker's handshake: in the one order of all sequentially consistent
  // operations either this comes first, and the reader sees the odd number, or
  // the store does, and the next load of `active` sees it. It also keeps the
  // page's bytes, written before, ahead of the look at the page's bit: where
  // that bit is set already nothing else would.
  //
  // A light writer leaves both to the reader, which has it pass a barrier after
  // the store to `active`: what stands before the barrier here is visible to
  // the reader, what stands after it sees the new index.
  if (light_) {
    record_->sequence.store(sequence_ + 1, std::memory_order_relaxed);
    LightFence();
  } else {
    record_->sequence.exchange(sequence_ + 1, std::memory_order_seq_cst);
  }
}

inline void DirtyLogWriter::Leave() {
  sequence_ += 2;
  record_->sequence.store(sequence_, std::memory_order_release);
}

inline const DirtyLogWriter::SlotMemory* DirtyLogWriter::Find(SlotId id) {
  return last_slot_->slot.id == id ? last_slot_ : FindOther(id);
}

template <typename SetBits>
void DirtyLogWriter::Set(const SlotMemory& slot, SetBits set_bits) {
  const uint32_t state = slot.record->active.load(std::memory_order_seq_cst);
  if (state & dirty_log_layout::kNotLogging) return;
  const uint32_t active = state & 1;
  set_bits(slot.bitmaps[active]);
  // Even if no bit changed: the writer that set it may not have come here yet.
  std::atomic<uint32_t>& dirty = slot.record->dirty[active];
  if (dirty.load(std::memory_order_relaxed) == 0) {
    dirty.store(1, std::memory_order_release);
  }
}

inline void DirtyLogWriter::MarkOne(const SlotMemory& slot, PageIndex page) {
  Set(slot, [page](PageBitmapView active) {
    if (!active.Test(page)) active.TestAndSet(page);
  });
}

inline bool DirtyLogWriter::Mark(SlotId slot, PageIndex page) {
  const SlotMemory* memory = Find(slot);
  if (memory == nullptr || page.value() >= memory->slot.pages.value()) {
    return false;
  }
  Enter();
  MarkOne(*memory, page);
  Leave();
  return true;
}

}  // namespace postcopy

#endif  // DIRTYTRACK_DIRTY_LOG_WRITER_H_
