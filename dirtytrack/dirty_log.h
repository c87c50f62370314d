// The dirty logs of one VM: double-buffered bitmaps in shared memory.
//
// After the KVM_SWITCH_DIRTY_LOG RFC of 2010 ("Moving dirty bitmaps to
// userspace", "introduce new API for getting/switching dirty bitmaps"), whose
// kernel half is here any process that marks pages. Every slot has two
// bitmaps: writers set bits in the *active* one while the reader walks the
// *retired* one, without a copy and without a lock. A switch exchanges them in
// O(1), whatever the slot's size.
//
// Deliberate differences from the RFC:
//   - A switch clears nothing. There the kernel clears the old bitmap before
//     it is used again; here bits that the reader left in it stay set, and
//     show again after the switch after next. So no dirty bit is ever lost
//     to a reader that failed half-way, and a switch costs the same for 1 TiB.
//   - A switch can fail: the RFC's kernel waits for its own readers
//     (synchronize_srcu), this one for processes it does not trust.
#ifndef DIRTYTRACK_DIRTY_LOG_H_
#define DIRTYTRACK_DIRTY_LOG_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <ostream>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/dirty_log_layout.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// How long a switch waits for a writer to leave its section. A section is a
// few microseconds of code; more means that the writer is stopped or hostile.
inline constexpr int64_t kGracePeriodMaxNanos = kNanosPerSecond;

enum class SwitchResult {
  kSwitched,  // the retired bitmap is the log up to this call
  kClean,     // nothing was dirty: no switch, no wait
};
std::ostream& operator<<(std::ostream& out, SwitchResult result);

// A slot's dirty log: bit p is page p of the slot.
struct DirtyLogSlot {
  SlotId id;
  PageCount pages;

  friend bool operator==(const DirtyLogSlot&, const DirtyLogSlot&) = default;
};

namespace dirty_log_internal {

struct SlotMemory {
  DirtyLogSlot slot;
  dirty_log_layout::SlotRecord* record;
  std::array<PageBitmapView, 2> bitmaps;
};

// The mapping and where things are in it: computed from what the caller
// expects, never from what the memory says. Immutable.
struct Memory {
  SharedMapping mapping;
  dirty_log_layout::WriterRecord* writers;  // [kMaxDirtyLogWriters]
  std::vector<SlotMemory> slots;            // ascending by id

  // The index in `slots`, or slots.size().
  size_t Find(SlotId id) const;
};

}  // namespace dirty_log_internal

// Marks pages. Lock-free: no call blocks, allocates or makes a system call.
// One thread at a time; every marking thread takes its own (DirtyLogSet::
// NewWriter). Keeps the memory mapped, so it may outlive its set.
//
// The bytes of a page that were written before a call are visible to whoever
// finds the page's bit after the call, also if the bit was set already.
//
// A slot that does not exist or a page beyond its end marks nothing and
// returns false: KVM's own log may name a slot the reader was not told of,
// and it is for the caller to decide what that means.
class DirtyLogWriter {
 public:
  DirtyLogWriter(DirtyLogWriter&& other) noexcept = default;
  DirtyLogWriter& operator=(DirtyLogWriter&& other) noexcept;
  // Gives the writer's record back.
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

 private:
  friend class DirtyLogSet;
  friend class DirtyLogWriterPeer;  // tests: stand still inside a section

  using Memory = dirty_log_internal::Memory;
  using SlotMemory = dirty_log_internal::SlotMemory;

  DirtyLogWriter(std::shared_ptr<const Memory> memory,
                 dirty_log_layout::WriterRecord* record);
  void Release();

  void Enter();
  void Leave();
  // The slot's memory, or null.
  const SlotMemory* Find(SlotId id);
  // Sets `bits` of word i. REQUIRES: inside a section.
  static void Set(const SlotMemory& slot, size_t i, uint64_t bits);

  // Null after a move.
  std::shared_ptr<const Memory> memory_;
  dirty_log_layout::WriterRecord* record_;
  uint64_t sequence_ = 0;  // what record_->sequence holds
  size_t last_slot_ = 0;   // callers mark the same slot again and again
};

// The dirty logs of all slots of one VM, in one memfd.
//
// Many processes may have a set open and write; ONE of them reads, by calling
// Switch, SwitchAll, Settle, Retired and Drain, from one thread at a time.
// NewWriter and the accessors are thread-safe, also against the reader.
//
// A slot as the reader sees it:
//
//   state    call                     condition          result, next state
//   SETTLED  Switch, SwitchAll        nothing dirty      kClean, SETTLED
//            Switch, SwitchAll        writers left       kSwitched, SETTLED
//            Switch, SwitchAll        a writer stays     UNAVAILABLE, PENDING
//   PENDING  Switch, SwitchAll        writers left       kSwitched, SETTLED
//            Settle                   writers left       OK, SETTLED
//            any of these             a writer stays     UNAVAILABLE, PENDING
//            Retired, Drain                              FAILED_PRECONDITION
//
// In SETTLED the retired bitmap belongs to the reader alone. In PENDING the
// bitmaps have been exchanged and a writer may still be setting bits in the
// retired one; the next switch finishes the wait instead of exchanging again.
// Then what was marked since the exchange is in the active bitmap, for the
// switch after it. So a reader that needs all of it (the last round) calls
// Settle, Drain, Switch, Drain.
//
// The reader before may have died while it waited. So until its first Settle,
// Switch or SwitchAll a set from Open refuses Retired and Drain as if PENDING;
// that first call waits for the writers first, then does what it always does.
//
// What the memory says after Open is never trusted: a hostile writer can lie
// about its own pages and make Switch return UNAVAILABLE, no more.
class DirtyLogSet {
 public:
  // Makes the memfd, sealed against resizing, all pages clean. `clock` times
  // the grace period. INVALID_ARGUMENT, naming the slot, unless there are
  // 1..kMaxSlots slots with unique ids and 1..kMaxRamBytes / kPageSize pages
  // each. Other errors as CreateMemfd and SharedMapping::Map.
  static absl::StatusOr<DirtyLogSet> Create(
      absl::Span<const DirtyLogSlot> slots, Clock* clock = Clock::Monotonic());

  // Maps the log that another process made for `expected` (in any order).
  // FAILED_PRECONDITION, naming the first thing that is wrong, if the
  // descriptor is not a memfd in ordinary pages that carries F_SEAL_SHRINK, or
  // if its header does not describe exactly these slots. Other errors as
  // Create. Touches nothing but the header.
  static absl::StatusOr<DirtyLogSet> Open(
      UniqueFd fd, absl::Span<const DirtyLogSlot> expected,
      Clock* clock = Clock::Monotonic());

  DirtyLogSet(DirtyLogSet&&) = default;
  DirtyLogSet& operator=(DirtyLogSet&&) = default;

  // The memfd, to be passed to those who mark. Owned by the set.
  int fd() const { return fd_.get(); }
  // Ascending by id.
  absl::Span<const DirtyLogSlot> slots() const { return slots_; }

  // Takes one of the kMaxDirtyLogWriters writer records; RESOURCE_EXHAUSTED if
  // all are taken. A process that dies keeps its records; nobody can tell from
  // outside (pids of another namespace mean nothing here).
  absl::StatusOr<DirtyLogWriter> NewWriter() const;

  // Exchanges the bitmaps of `slot` if its active one is dirty, and waits until
  // no writer can be setting a bit in the retired one. After kSwitched every
  // mark that returned before this call is in the retired bitmap (but see
  // PENDING above), visible together with what its writer had done before, and
  // the retired bitmap changes only by the reader's hand until the next switch.
  // After kClean the retired bitmap is what it was. Errors:
  //   NOT_FOUND    no such slot
  //   UNAVAILABLE  a writer, named with its pid, did not leave its section for
  //                kGracePeriodMaxNanos; the slot is PENDING; call again
  absl::StatusOr<SwitchResult> Switch(SlotId slot);

  // Switches every slot that is dirty, with one grace period for all of them;
  // kClean if none was. On UNAVAILABLE these slots are PENDING.
  absl::StatusOr<SwitchResult> SwitchAll();

  // Ends PENDING for all slots, exchanging nothing. OK at once if none is;
  // UNAVAILABLE as Switch.
  absl::Status Settle();

  // The retired bitmap, to read with zero copies and to take bits from; valid
  // until the next switch of the slot. A bit that is left set is not lost: it
  // counts as dirty again when the bitmap is next active. NOT_FOUND: no such
  // slot. FAILED_PRECONDITION: PENDING.
  absl::StatusOr<PageBitmapView> Retired(SlotId slot) const;

  // Moves the retired bitmap of `slot` into `into`, the slot's page 0 going to
  // page `at` (any, not only multiples of 64), and leaves it clean. Returns
  // how many pages were clear in `into`. O(1) if the retired bitmap is clean.
  // Errors as Retired, and OUT_OF_RANGE if the slot does not fit in `into`;
  // then nothing has moved.
  absl::StatusOr<PageCount> Drain(SlotId slot, PageBitmapView into,
                                  PageIndex at);

 private:
  using Memory = dirty_log_internal::Memory;
  using SlotMemory = dirty_log_internal::SlotMemory;

  // What the reader knows of a slot. Kept here because the copy in the shared
  // memory can be overwritten by any writer.
  struct ReaderState {
    uint32_t active = 0;
    bool pending = false;
  };

  DirtyLogSet(UniqueFd fd, std::shared_ptr<const Memory> memory, bool settled,
              Clock* clock);

  // The index of `slot` in memory_->slots, or NOT_FOUND.
  absl::StatusOr<size_t> Find(SlotId slot) const;
  absl::StatusOr<size_t> FindSettled(SlotId slot) const;
  // Exchanges the bitmaps of slot i and makes it pending, if it is dirty and
  // not pending already. True if it is pending now.
  bool Flip(size_t i);
  // The grace period: OK once every section that was open has been left.
  absl::Status AwaitWriters() const;
  absl::Status SettleAdopted();

  UniqueFd fd_;
  std::shared_ptr<const Memory> memory_;
  std::vector<DirtyLogSlot> slots_;
  Clock* clock_;

  std::vector<ReaderState> reader_;  // parallel to memory_->slots
  bool settled_;                     // false: opened and not settled since
};

}  // namespace postcopy

#endif  // DIRTYTRACK_DIRTY_LOG_H_
