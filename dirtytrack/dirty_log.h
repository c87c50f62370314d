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
//   - GetDirtyLog may be mixed with switches; the RFC advises against it.
#ifndef DIRTYTRACK_DIRTY_LOG_H_
#define DIRTYTRACK_DIRTY_LOG_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/dirty_log_memory.h"
#include "dirtytrack/dirty_log_writer.h"
#include "dirtytrack/liveness_locks.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// How long a switch waits for a writer to leave its section. A section is a
// few microseconds of code; more means that the writer is stopped or hostile.
inline constexpr int64_t kGracePeriodMaxNanos = kNanosPerSecond;

// What this implementation can do, as KVM_CHECK_EXTENSION would say of
// KVM_CAP_USER_DIRTY_LOG in the RFC: 1 is exported bitmaps and switching them;
// 2 adds bitmaps that the caller has allocated.
inline constexpr int kDirtyLogGeneration = 2;

enum class SwitchResult {
  kSwitched,  // the retired bitmap is the log up to this call
  kClean,     // nothing was dirty: no switch, no wait
};
std::ostream& operator<<(std::ostream& out, SwitchResult result);

// Where the two bitmaps of a slot are (the RFC's KVM_GET_USER_DIRTY_LOG_ADDR).
struct UserDirtyLog {
  // The set's memfd and the offsets of the bitmaps in it, or
  // dirty_log_layout::kInCallersMemory.
  int fd;
  std::array<uint64_t, 2> offsets;
  // The same in this process.
  std::array<PageBitmapView, 2> bitmaps;
  // Which of them is being marked now. As in the RFC, remembering it is up to
  // the caller: it changes whenever a switch says kSwitched.
  uint32_t active;
};

// The dirty logs of all slots of one VM, in one memfd.
//
// Many processes may have a set open and write; ONE of them reads, by calling
// what is not const, and Retired, from one thread at a time. NewWriter and the
// accessors are thread-safe, also against the reader.
//
// A slot is marked while it is logging, which it is from the beginning and
// between StartLogging and StopLogging. Where it is not, Switch, GetDirtyLog,
// GetUserDirtyLog, Retired and Drain are FAILED_PRECONDITION (the RFC's
// ENOENT), and SwitchAll passes it by. An id that is no slot's is NOT_FOUND
// (EINVAL).
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
// What the memory says after Open is never trusted by the reader: no writer can
// make it crash, read elsewhere, or wait for more than kGracePeriodMaxNanos.
// But writers of one log map all of it, and are one trust domain, like the VMM
// and its threads: a hostile one can clear the others' bits. Who is trusted
// less (a vhost-user back-end of another owner) gets a log of its own
// (vhost_log.h).
class DirtyLogSet {
 public:
  // Makes the memfd, sealed against resizing, all pages clean. `clock` times
  // the grace period. INVALID_ARGUMENT, naming the slot, unless there are
  // 1..kMaxSlots slots with unique ids and 1..kMaxRamBytes / kPageSize pages
  // each. Other errors as CreateMemfd and SharedMapping::Map.
  static absl::StatusOr<DirtyLogSet> Create(
      absl::Span<const DirtyLogSlot> slots, Clock* clock = Clock::Monotonic());

  // The same, with `bitmaps` for some of the slots in memory of the caller:
  // other processes can neither open such a set nor mark its pages.
  // INVALID_ARGUMENT also for a slot that is not in `slots` or named twice, and
  // for a missing bitmap.
  static absl::StatusOr<DirtyLogSet> CreateOver(
      absl::Span<const DirtyLogSlot> slots,
      absl::Span<const CallerBitmaps> bitmaps,
      Clock* clock = Clock::Monotonic());

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
  // all are taken, FAILED_PRECONDITION if the log is superseded.
  absl::StatusOr<DirtyLogWriter> NewWriter(
      WriterEntry entry = WriterEntry::kLightIfPossible) const;

  // Takes the records back of writers whose process has ended without giving
  // them back (liveness_locks.h says how that is seen; without /proc it is
  // not). Returns how many such there have been in the life of this object,
  // also those that a switch met. Each may have written pages and not marked
  // them: a reader that finds the number grown has to take every page for
  // dirty. A system call for each writer.
  uint64_t ReapDeadWriters();

  // True while a writer record is taken, in whatever process.
  bool HasWriters() const;

  // Tells writers to look for the log that has been made in this one's place
  // (DirtyLogWriter::superseded). They may go on here until they have; so the
  // log is done with when HasWriters() is false and all is drained.
  void Supersede();

  // Starts logging of writes to the slot: marks that begin after the call
  // count. Its bitmaps are clean. OK if it is logging. UNAVAILABLE as Switch,
  // if a StopLogging has not come to its end; then nothing is logged.
  absl::Status StartLogging(SlotId slot);

  // Stops it, and forgets what was marked; costs a walk of the bitmaps if any
  // was. OK if it is not logging. UNAVAILABLE as Switch: no new section marks
  // pages, but the bitmaps could not be emptied; call again.
  absl::Status StopLogging(SlotId slot);

  // Exchanges the bitmaps of `slot` if its active one is dirty, and waits until
  // no writer can be setting a bit in the retired one. After kSwitched every
  // mark that returned before this call is in the retired bitmap (but see
  // PENDING above), visible together with what its writer had done before, and
  // the retired bitmap changes only by the reader's hand until the next switch.
  // After kClean the retired bitmap is what it was. Errors:
  //   NOT_FOUND    no such slot
  //   UNAVAILABLE  a writer, named with its pid, did not leave its section for
  //                kGracePeriodMaxNanos; the slot is PENDING; call again. One
  //                whose process has ended is not waited for: ReapDeadWriters
  //   FAILED_PRECONDITION  the slot is not logging; or this process may not
  //   call
  //                membarrier(2), and the slot is PENDING
  absl::StatusOr<SwitchResult> Switch(SlotId slot);

  // Switches every slot that is dirty, with one grace period for all of them;
  // kClean if none was. On UNAVAILABLE these slots are PENDING.
  absl::StatusOr<SwitchResult> SwitchAll();

  // Ends PENDING for all slots, exchanging nothing. OK at once if none is;
  // UNAVAILABLE as Switch.
  absl::Status Settle();

  // The compatible call, which copies (KVM_GET_DIRTY_LOG): makes `words` the
  // set of pages that were marked and that no GetDirtyLog and no Drain has
  // taken yet, and takes them; in KVM's layout. O(size of the slot).
  //
  // It may be mixed with Switch in any order, and no page is lost: it takes
  // first what the retired bitmap still holds, then switches, and what it
  // leaves retired is clean. So a view from Retired is empty after it, and
  // `active` of GetUserDirtyLog may have changed: prefer one of the two.
  //
  // INVALID_ARGUMENT unless words.size() is that of the slot's bitmap. Other
  // errors as Switch; then nothing has been taken, and `words` is unspecified.
  absl::Status GetDirtyLog(SlotId slot, absl::Span<uint64_t> words);

  absl::StatusOr<UserDirtyLog> GetUserDirtyLog(SlotId slot) const;

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
    bool logging = true;
  };

  DirtyLogSet(UniqueFd fd, std::shared_ptr<const Memory> memory, bool settled,
              Clock* clock);

  // The index of `slot` in memory_->slots, or NOT_FOUND.
  absl::StatusOr<size_t> Find(SlotId slot) const;
  absl::StatusOr<size_t> FindLogging(SlotId slot) const;
  absl::StatusOr<size_t> FindSettled(SlotId slot) const;
  // Exchanges the bitmaps of slot i and makes it pending, if it is dirty and
  // not pending already. True if it is pending now.
  bool Flip(size_t i);
  // The grace period: OK once every section that was open has been left.
  absl::Status AwaitWriters();
  bool AnyLightWriter() const;
  bool ReapIfDead(size_t i);
  absl::Status SettleAdopted();
  // Clears both bitmaps of slot i, once nobody marks them.
  // REQUIRES: the slot is not logging.
  absl::Status Empty(size_t i);
  // Marks what was taken from slot i again.
  void GiveBack(size_t i, PageBitmapView taken);

  UniqueFd fd_;
  std::shared_ptr<const Memory> memory_;
  std::vector<DirtyLogSlot> slots_;
  Clock* clock_;

  std::vector<ReaderState> reader_;      // parallel to memory_->slots
  bool settled_;                         // false: opened and not settled since
  std::optional<LivenessLocks> reaper_;  // none if there is no /proc
  uint64_t writers_lost_ = 0;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_DIRTY_LOG_H_
