// Makes the content of pages visible to the guest, once, and wakes who waits.
#ifndef UFFD_INSTALLER_H_
#define UFFD_INSTALLER_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <shared_mutex>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/destination_ram.h"
#include "uffd/install_gate.h"
#include "uffd/install_strategy.h"
#include "uffd/page_claims.h"
#include "uffd/page_state.h"
#include "uffd/uffd_ops.h"

namespace postcopy {

// Times that EAGAIN is taken, in a row and without progress, before an install
// gives up: the kernel waits for the fault loop to read a message, which takes
// it microseconds, or long if it is kept from running, or never happens. After
// the first of them with a yield in between, then with a sleep: a second or so
// altogether.
inline constexpr int kMaxInstallRetries = 10'000;
inline constexpr int kMaxInstallYields = 1'000;

// Times that a page is found emptied again as soon as it has been written: then
// the file is not the one that the VMM has mapped there, or it is given up in a
// loop.
inline constexpr int kMaxEmptied = 16;

// Installs with each region's InstallStrategy: what the guest has written since
// is never overwritten, whoever else installs the same page at the same time,
// because the kernel inserts only where there is no page or because of
// PageClaims. Each ioctl wakes the waiters of what it installed; a separate
// UFFDIO_WAKE for a batch would cost a second system call to save a look at an
// empty wait queue. The mark in PageState comes after the ioctl: a page that is
// received is there.
//
// Thread-safe; allocates only for error messages. Waits for nobody but at an
// InstallGate that is needed, for who writes the same pages, and, where stale
// bytes are replaced, for the lock of the VM's memory file, which its VMM can
// hold (write(2) into it from memory that is missing).
//
// Errors: ABORTED: the VMM's process is gone. UNAVAILABLE: EAGAIN
// kMaxInstallRetries times. RESOURCE_EXHAUSTED: no memory at this host, or the
// RAM file's file system is full. Else INTERNAL. Pages before the failing one
// are installed and marked, the rest is not; the call can be made again.
class Installer {
 public:
  // All outlive the object.
  Installer(const DestinationRam* ram, UffdOps* ops, PageState* state,
            InstallGate* gate, const InstallStrategies* strategies)
      : ram_(*ram),
        ops_(*ops),
        state_(*state),
        gate_(*gate),
        strategies_(*strategies) {}

  // REQUIRES for all: run is not empty, lies in the layout, and has whole pages
  // of each region (DestinationRam::UnitOf). It may cross regions.

  // Gives the missing pages of `run` their content. Pages received already are
  // left alone and woken. A page that the kernel finds present counts as
  // received; so does one that the VMM has unmapped: nobody can miss it.
  // REQUIRES: bytes.size() == run.count * kPageSize.
  ReceiveResult InstallData(PageRun run, absl::Span<const uint8_t> bytes);

  // Fills `run` with zeros where it is missing, or received as zeros and still
  // a hole. Else as InstallData.
  ReceiveResult InstallZero(PageRun run);

  // Takes note that `run` is zeros and leaves it a hole, or makes it one where
  // stale bytes are: a guest's unused memory stays unused. Who waits there
  // faults again, and is then given zeros by the fault loop. Pages received
  // already are woken only.
  ReceiveResult AdmitZero(PageRun run);

  // Wakes who waits for `run`.
  void Wake(PageRun run);

  // One attempt, for the fault loop, to fill the region's page that holds
  // `page` with zeros if it is not there, whatever PageState says of it; wakes
  // who waits for it. 0 if it is zeros now, or nothing is mapped there; EEXIST
  // if it was there; else EAGAIN until messages have been read, ENOMEM, ESRCH.
  int TryZero(PageIndex page);

  // One attempt, for the fault loop, to show the guest the received page
  // `page`, which is in its file, and to wake who waits for it. 0 if it is in
  // sight now, or nothing is mapped there; EFAULT if the file has no such page;
  // else as TryZero.
  int TryReveal(PageIndex page);

  // Shows the guest received pages from the start of `run` on, and wakes who
  // waits. Returns how many pages are settled: in sight, or not to be shown
  // after all (which does not say that nothing waits there any more); 0: not
  // now. nullopt: the VMM's process is gone. REQUIRES: `run`
  // is received.
  std::optional<PageCount> RevealSome(PageRun run);

  // True if what is in the file of `page` may be out of sight, so that a touch
  // of it is a minor fault. Not so where it waits: that is a missing page.
  bool MayBeOutOfSight(PageIndex page) const {
    return strategies_[ram_.layout().RegionOf(page)]->replaces();
  }

  // True if so for any page.
  bool Replaces() const {
    return std::any_of(strategies_.begin(), strategies_.end(),
                       [](const auto& of) { return of->replaces(); });
  }

  // Makes who touches a missing page of `run` get SIGBUS, now and after this
  // service is gone. Pages that are there are left alone. PageState is not
  // changed, and from the first call on a page that is poisoned does not become
  // received: the kernel says of one that it is there. UNIMPLEMENTED: the
  // kernel is older than 6.6; else errors as above.
  absl::Status Poison(PageRun run);

  // Pages found present by the kernel; pages unmapped; EAGAINs.
  uint64_t already_present() const { return Load(already_present_); }
  uint64_t unmapped() const { return Load(unmapped_); }
  uint64_t retries() const { return Load(retries_); }

 private:
  using Piece = DestinationRam::Piece;

  // What was tried since the last progress.
  struct Attempt {
    int retries = 0;
    int emptied = 0;
    bool one_page = false;
    bool unclear = false;  // settled, and there or poisoned
    int error = 0;         // an errno: give up
  };

  static uint64_t Load(const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  }

  const InstallStrategy& StrategyOf(const Piece& piece) const {
    return *strategies_[ram_.layout().RegionOf(piece.pages.first)];
  }
  // The beginning of `run` that one pass through the gate may cover; that one
  // claim may cover as well.
  Piece FirstInGate(PageRun run) const;
  Piece FirstPass(PageRun run) const;
  // Nothing is held where the kernel inserts only once.
  PageClaims::Claim ClaimFor(const Piece& piece);
  // For who reveals: nothing is held where nothing waits.
  PageClaims::Claim ClaimToReveal(const Piece& piece);

  // One pass from the start of `run` on, which is missing or was: returns how
  // many pages are settled, unless `error` is set, an errno of the file system.
  PageCount AdmitSome(PageRun run, PageCount* received, int* error);
  // Reveals `piece`, or finds that it need not. 0, or why not now.
  // REQUIRES: inside the gate; mapped; one unit at most.
  int Show(const Piece& piece);

  // `bytes` is null for zeros in all of these.
  ReceiveResult Install(PageRun run, const uint8_t* bytes);
  // One pass through the gate and one ioctl. Returns how many pages from the
  // start of `rest` are settled, and adds to `received` those that were
  // missing; if none is settled, `attempt` says whether and how to try again.
  PageCount InstallSome(PageRun rest, const uint8_t* bytes, Attempt* attempt,
                        PageCount* received);
  // The beginning of `piece` of which all pages are missing, or need zeros all
  // the same, or need nothing.
  Piece SameNeeds(Piece piece, bool is_zero) const;
  PageCount Transfer(const Piece& piece, const uint8_t* bytes,
                     Attempt* attempt);
  // REQUIRES for these: inside the gate.
  UffdResult Insert(const Piece& piece, const uint8_t* bytes);
  UffdResult PoisonSome(const Piece& piece);
  void WakePiece(const Piece& piece);
  enum class Need { kNothing, kZeros, kAll };
  Need NeedOf(PageIndex page, bool is_zero) const;

  const DestinationRam& ram_;
  UffdOps& ops_;
  PageState& state_;
  InstallGate& gate_;
  const InstallStrategies& strategies_;
  PageClaims claims_;
  // Held, shared, by who marks pages that no ioctl was asked about; alone,
  // while poisoning begins.
  std::shared_mutex mark_mutex_;
  // Set before anything is poisoned, so before the kernel says EEXIST of that.
  std::atomic<bool> poisoning_{false};
  std::atomic<uint64_t> already_present_{0};
  std::atomic<uint64_t> unmapped_{0};
  std::atomic<uint64_t> retries_{0};
};

}  // namespace postcopy

#endif  // UFFD_INSTALLER_H_
