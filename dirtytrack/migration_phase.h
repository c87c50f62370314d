// The states of a migration, and what each lets happen: the table that both
// halves of a migration, their tests and docs/protocol.md go by.
#ifndef DIRTYTRACK_MIGRATION_PHASE_H_
#define DIRTYTRACK_MIGRATION_PHASE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace postcopy {

// Where a migration stands at one side. A source is never paused or recovering.
enum class MigrationPhase {
  kPreparing,
  kPrecopy,
  kSwitching,
  kPostcopy,
  kPaused,
  kRecovering,
  kCompleted,
  kCancelled,
  kFailed,
};
inline constexpr size_t kMigrationPhases = 9;

// True if no phase follows.
bool HasEnded(MigrationPhase phase);
// "PRECOPY"; as MigrationState without its prefix.
absl::string_view NameOf(MigrationPhase phase);

enum class MigrationRole { kSource, kDestination };

// What may be asked of a migration and what may happen to it.
enum class MigrationEvent {
  // Commands of the control plane.
  kSwitchOver,
  kCancel,
  // A destination's, once it has said that it is ready.
  kCancelAfterReady,
  kPause,
  kRecover,
  kSetLimits,
  kAbandon,
  kDelete,
  // A session of the data plane begins; at a destination: of a source that has
  // not handed over.
  kSession,
  // The same, when the destination has said that it is ready.
  kSessionAfterReady,
  // A session begins with a source that has handed the guest over.
  kSessionCommitted,
  // The session is lost, or cannot be opened, and is worth another try.
  kSessionLost,
  // The peer was away for too long, or an error was found that no session
  // mends.
  kGivenUp,
  // The destination dials once more.
  kDial,
  // The source stops the guest; the destination is told what is stale.
  kSwitch,
  // The point of no return: taken at the source, heard of at the destination.
  kCommit,
  // Every page is at the destination: the source is told, and has heard it; or
  // it cannot be told yet.
  kCompleted,
  kUntold,
  // The missing pages have been poisoned.
  kAbandoned,
  // Nothing can be done for the guest: it cannot be resumed, or not be served.
  kBroken,
  // The VMM closed its connection.
  kVmmGone,
};

// What an event does in a phase.
struct Reaction {
  enum class Kind {
    kImpossible,  // never comes; changes nothing
    kStays,
    kGoes,     // to `to`
    kRefused,  // with `code`; commands only
  };
  Kind kind = Kind::kImpossible;
  MigrationPhase to = MigrationPhase::kPreparing;
  absl::StatusCode code = absl::StatusCode::kOk;
};

Reaction ReactionOf(MigrationRole role, MigrationPhase phase,
                    MigrationEvent event);

// The events of a role, in the order of the table.
absl::Span<const MigrationEvent> EventsOf(MigrationRole role);
// The phases of a role, in the order of a migration's life.
absl::Span<const MigrationPhase> PhasesOf(MigrationRole role);

// OK, or why `command` is refused in `phase`, in a sentence; `message` is the
// migration's own word on the phase.
absl::Status Permit(MigrationRole role, MigrationPhase phase,
                    MigrationEvent command, absl::string_view message);

// The table of a role as docs/protocol.md has it.
std::string PhaseTable(MigrationRole role);

// Changes of phase kept, the last ones.
inline constexpr size_t kPhaseChangesKept = 32;
// Most that is kept of a message.
inline constexpr size_t kPhaseMessageBytesMax = 256;

struct PhaseChange {
  // From 1, without gaps.
  uint64_t number = 0;
  MigrationPhase phase = MigrationPhase::kPreparing;
  // By the monotonic clock.
  int64_t at_ns = 0;
  std::string message;
};

// The phases a migration has gone through. Not thread-safe.
class PhaseHistory {
 public:
  void Add(MigrationPhase phase, int64_t at_ns, absl::string_view message);
  // Oldest first.
  std::vector<PhaseChange> changes() const {
    return {changes_.begin(), changes_.end()};
  }

 private:
  uint64_t last_number_ = 0;
  std::deque<PhaseChange> changes_;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_MIGRATION_PHASE_H_
