// A guest and the machine that runs it, ready to be migrated by somebody else.
//
// There are two kinds. The KVM machine is a real guest of /dev/kvm. The process
// machine runs the same program as threads of this process, where there is no
// KVM. Neither knows how RAM travels: who owns the machine copies RAM, and this
// gives what else a migration needs from a VMM.
#ifndef CMD_DEMOVM_MACHINE_H_
#define CMD_DEMOVM_MACHINE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cmd/demovm/dirty_tracking.h"
#include "cmd/demovm/guest_abi.h"
#include "cmd/demovm/guest_ram.h"
#include "dirtytrack/types.h"

namespace postcopy::demovm {

inline constexpr int kMaxVcpus = 8;

struct MachineOptions {
  // 1..kMaxVcpus. The same on source and destination.
  int vcpus = 1;
  // How fast the guest writes its pages, all vCPUs together; 0: as fast as it
  // can. Kept by the VMM, between two reports of a vCPU.
  uint64_t write_rate_mib_per_s = 150;
  // How the KVM machine finds dirty pages; means nothing to the other kind.
  KvmTracking kvm_tracking = KvmTracking::kManual;

  // The rest matters to Start() only: a destination takes what the source had.
  //
  // How much of the guest's data is rewritten at random, 1..100 percent. The
  // rest is read in order, over and over, and seldom written.
  int hot_percent = 25;
  // One data page in so many is never written, 0 (none) or a power of two from
  // 2 up to 2^20.
  int never_written_one_in = 8;
  // How many of the other data pages are written before the guest runs,
  // 0..100 percent. The guest writes the rest in the course of time.
  int fill_percent = 50;
  uint64_t seed = 1;
};

// What the guest found wrong first.
struct GuestMismatch {
  enum class Kind { kPage, kSum };
  Kind kind = Kind::kPage;
  // kPage: the page, its version entry, the first word that differs, and what
  // was there.
  PageIndex page{};
  uint32_t entry = 0;
  uint64_t word = 0;
  uint64_t found = 0;
  // kSum: the vCPU whose pages' entries do not add up to what it wrote.
  uint64_t vcpu = 0;
};

// "page 0x123: word 7 is 0x0, not as version 4 has it".
std::string ToString(const GuestMismatch& mismatch);

// What the guest has done since Start() on whichever host, all vCPUs together.
struct GuestProgress {
  uint64_t steps = 0;
  uint64_t page_writes = 0;
  uint64_t checks = 0;      // pages read and compared
  uint64_t mismatches = 0;  // comparisons that failed. 0 if RAM is right.
  // The first one, if it was reported by a vCPU of this machine or came with
  // the state.
  std::optional<GuestMismatch> first_mismatch;
  // Not OK if a vCPU did what no vCPU should, with a sentence that says what;
  // the guest has stopped then.
  absl::Status status;
};

// What paused vCPUs claim about RAM; see CheckGuest() in guest_checker.h.
struct GuestClaims {
  GuestParams params{};
  std::vector<std::array<uint64_t, kGuestRegisterCount>> registers{};
};

// One guest: RAM and vCPUs. Every method but Progress() belongs to one thread
// at a time; Progress() may be called by any thread at any time.
//
//              Start                    Pause
//     new ---------------> running ------------> paused
//      |                      ^                  |    |
//      |                      +------ Resume ----+    +- SaveState, Claims
//      +-------------- LoadState ----------------^
//
// A call in a state that the picture does not show is FAILED_PRECONDITION and
// changes nothing. RAM is touched in Start() (by this process), in Resume() and
// while running (by vCPUs), and nowhere else.
class Machine {
 public:
  // Stops the guest, in whatever state. Waits for vCPUs that wait for a page
  // of RAM, so resolve (or wake) their faults before.
  virtual ~Machine() = default;

  // "kvm" or "process".
  virtual absl::string_view kind() const = 0;
  virtual const GuestRam& ram() const = 0;

  // Installs the guest program in RAM, which must be all zeros, and runs it.
  virtual absl::Status Start() = 0;

  // When this returns OK no vCPU executes, and none writes RAM any more until
  // Resume(). Takes as long as a vCPU's present page fault; under KVM the guest
  // stands between any two instructions, else at the end of a step. OK too if
  // the guest has failed.
  virtual absl::Status Pause() = 0;

  // All of the machine but RAM, for LoadState() of another one of the same
  // kind, RAM size and number of vCPUs. An opaque blob of a few KiB with a
  // version number. Fails with the guest's failure if it has failed.
  virtual absl::StatusOr<std::string> SaveState() = 0;

  // Takes over what SaveState() gave; then the machine is paused. Touches no
  // RAM. INVALID_ARGUMENT, naming what is wrong, for anything that is not the
  // state of such a machine; then the machine is as new, or (if KVM itself
  // refused a vCPU's state) good for nothing but LoadState().
  virtual absl::Status LoadState(absl::string_view blob) = 0;

  virtual absl::Status Resume() = 0;

  // From here on, every page that the guest writes is reported by the next
  // CollectDirty(). In any state, also while running.
  virtual absl::Status StartDirtyLogging() = 0;

  // Bit b of words[i] is page 64 * (first_word + i) + b of the slot. Does not
  // keep the span.
  using DirtyReport = absl::FunctionRef<void(SlotId slot, uint64_t first_word,
                                             absl::Span<const uint64_t> words)>;

  // Calls `report` for the pages written since the last call (the first time:
  // since StartDirtyLogging) and forgets them. While the guest runs, a page
  // written during the call is reported by this call or by the next; who reads
  // a page after it was reported has either its last bytes or sees it reported
  // again. After Pause() nothing is left out. On failure the next call reports
  // what this one did not, but for DATA_LOSS: then what was written is unknown
  // until logging is started anew.
  virtual absl::Status CollectDirty(DirtyReport report) = 0;

  // The pages that were not collected are forgotten.
  virtual absl::Status StopDirtyLogging() = 0;

  // As the vCPUs last reported, every kStepsPerReport steps; exact when paused.
  virtual GuestProgress Progress() = 0;

  // REQUIRES: paused.
  virtual absl::StatusOr<GuestClaims> Claims() = 0;
};

// A guest of /dev/kvm. If that cannot be used the error says what to do about
// it. A process may have several. Uses the signal SIGRTMIN + 6 of the whole
// process.
absl::StatusOr<std::unique_ptr<Machine>> CreateKvmMachine(
    const MachineOptions& options, GuestRam ram);

// The same guest as threads of this process.
absl::StatusOr<std::unique_ptr<Machine>> CreateProcessMachine(
    const MachineOptions& options, GuestRam ram);

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_MACHINE_H_
