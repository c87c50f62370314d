// Makes the content of pages visible to the guest, once, and wakes who waits.
#ifndef UFFD_INSTALLER_H_
#define UFFD_INSTALLER_H_

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/destination_ram.h"
#include "uffd/page_state.h"
#include "uffd/uffd_ops.h"

namespace postcopy {

// Times that EAGAIN is answered with a yield, in a row and without progress,
// before an install gives up: the kernel waits for the fault loop to read an
// event, which takes it microseconds or never happens.
inline constexpr int kMaxInstallRetries = 10'000;

// Installs with UFFDIO_COPY and UFFDIO_ZEROPAGE, which insert only where there
// is no page: what the guest has written since is never overwritten, whoever
// else installs the same page at the same time. Each ioctl wakes the waiters of
// what it installed; a separate UFFDIO_WAKE for a batch would cost a second
// system call to save a look at an empty wait queue. The mark in PageState
// comes after the ioctl: a page that is received is there.
//
// Thread-safe, lock-free; allocates only for error messages.
//
// Errors: ABORTED: the VMM's process is gone. UNAVAILABLE: EAGAIN
// kMaxInstallRetries times. RESOURCE_EXHAUSTED: no memory at this host, or the
// RAM file's file system is full. Else INTERNAL. Pages before the failing one
// are installed and marked, the rest is not; the call can be made again.
class Installer {
 public:
  // All three outlive the object.
  Installer(const DestinationRam* ram, UffdOps* ops, PageState* state)
      : ram_(*ram), ops_(*ops), state_(*state) {}

  // REQUIRES for all: run is not empty and lies in the layout. It may cross
  // regions.

  // Gives the missing pages of `run` their content. Pages received already are
  // left alone and woken. A page that the kernel finds present counts as
  // received; so does one that the VMM has unmapped: nobody can miss it.
  // REQUIRES: bytes.size() == run.count * kPageSize.
  ReceiveResult InstallData(PageRun run, absl::Span<const uint8_t> bytes);

  // Fills `run` with zeros where it is missing, or received as zeros and still
  // a hole. Else as InstallData.
  ReceiveResult InstallZero(PageRun run);

  // Takes note that `run` is zeros and leaves it the hole it is: a guest's
  // unused memory stays unused. Who waits there faults again, and is then given
  // zeros by the fault loop. Pages received already are woken only.
  ReceiveResult AdmitZero(PageRun run);

  // Wakes who waits for `run`.
  void Wake(PageRun run);

  // Pages found present by the kernel; pages unmapped; EAGAINs.
  uint64_t already_present() const { return Load(already_present_); }
  uint64_t unmapped() const { return Load(unmapped_); }
  uint64_t retries() const { return Load(retries_); }

 private:
  using Piece = DestinationRam::Piece;

  // What was tried since the last progress.
  struct Attempt {
    int retries = 0;
    bool one_page = false;
    int error = 0;  // an errno: give up
  };

  static uint64_t Load(const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  }

  // `bytes` is null for zeros in all of these.
  ReceiveResult Install(PageRun run, const uint8_t* bytes);
  ReceiveResult InstallPiece(const Piece& piece, const uint8_t* bytes);
  // Installs all of `piece`, in as many ioctls as the kernel makes of it.
  ReceiveResult Transfer(const Piece& piece, const uint8_t* bytes);
  // One ioctl. Returns how many pages from the start of `rest` are settled; if
  // none, `attempt` says whether and how to try again.
  PageCount TransferSome(const Piece& rest, const uint8_t* bytes,
                         Attempt* attempt);
  bool Needs(PageIndex page, bool is_zero) const;

  const DestinationRam& ram_;
  UffdOps& ops_;
  PageState& state_;
  std::atomic<uint64_t> already_present_{0};
  std::atomic<uint64_t> unmapped_{0};
  std::atomic<uint64_t> retries_{0};
};

}  // namespace postcopy

#endif  // UFFD_INSTALLER_H_
