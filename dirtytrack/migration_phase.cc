#include "dirtytrack/migration_phase.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

using Event = MigrationEvent;
using Phase = MigrationPhase;
using Kind = Reaction::Kind;

constexpr Reaction kNever{};
constexpr Reaction kSame{.kind = Kind::kStays};
constexpr Reaction To(Phase phase) {
  return {.kind = Kind::kGoes, .to = phase};
}
constexpr Reaction Refuse(absl::StatusCode code) {
  return {.kind = Kind::kRefused, .code = code};
}
constexpr Reaction kWrong = Refuse(absl::StatusCode::kFailedPrecondition);
constexpr Reaction kOver = Refuse(absl::StatusCode::kAborted);
constexpr Reaction kToPrecopy = To(Phase::kPrecopy);
constexpr Reaction kToSwitching = To(Phase::kSwitching);
constexpr Reaction kToPostcopy = To(Phase::kPostcopy);
constexpr Reaction kToPaused = To(Phase::kPaused);
constexpr Reaction kToRecovering = To(Phase::kRecovering);
constexpr Reaction kToCompleted = To(Phase::kCompleted);
constexpr Reaction kToCancelled = To(Phase::kCancelled);
constexpr Reaction kToFailed = To(Phase::kFailed);

struct Row {
  Event event;
  const char* name;
  std::array<Reaction, kMigrationPhases> reactions;
};

// clang-format off
constexpr Row kSourceRows[] = {
    //                    PREPARING      PRECOPY       SWITCHING     POSTCOPY      PAUSED  RECOVERING COMPLETED CANCELLED FAILED
    {Event::kSwitchOver, "SwitchOver",
                         {kWrong,       kToSwitching, kSame,        kSame,        kNever, kNever,    kSame,    kOver,    kOver}},
    {Event::kCancel, "CancelMigration",
                         {kToCancelled, kToCancelled, kToCancelled, kWrong,       kNever, kNever,    kWrong,   kSame,    kWrong}},
    {Event::kPause, "PauseMigration",
                         {kWrong,       kWrong,       kWrong,       kWrong,       kNever, kNever,    kWrong,   kWrong,   kWrong}},
    {Event::kRecover, "RecoverMigration",
                         {kWrong,       kWrong,       kWrong,       kWrong,       kNever, kNever,    kWrong,   kWrong,   kWrong}},
    {Event::kSetLimits, "SetLimits",
                         {kSame,        kSame,        kSame,        kSame,        kNever, kNever,    kWrong,   kWrong,   kWrong}},
    {Event::kAbandon, "AbandonMigration",
                         {kWrong,       kWrong,       kWrong,       kWrong,       kNever, kNever,    kWrong,   kWrong,   kWrong}},
    {Event::kDelete, "DeleteMigration",
                         {kWrong,       kWrong,       kWrong,       kWrong,       kNever, kNever,    kSame,    kSame,    kSame}},
    {Event::kSession, "the bulk stream of a session attaches",
                         {kToPrecopy,   kToPrecopy,   kNever,       kSame,        kNever, kNever,    kNever,   kNever,   kNever}},
    {Event::kSwitch, "the guest is being stopped",
                         {kNever,       kToSwitching, kNever,       kNever,       kNever, kNever,    kNever,   kNever,   kNever}},
    {Event::kCommit, "Ready came (commit)",
                         {kNever,       kNever,       kToPostcopy,  kNever,       kNever, kNever,    kNever,   kNever,   kNever}},
    {Event::kSessionLost, "the stream is lost",
                         {kNever,       kSame,        kToCancelled, kSame,        kNever, kNever,    kNever,   kNever,   kNever}},
    {Event::kGivenUp, "the destination is away too long, any error",
                         {kToCancelled, kToCancelled, kToCancelled, kNever,       kNever, kNever,    kNever,   kNever,   kNever}},
    {Event::kCompleted, "CompleteSession",
                         {kNever,       kNever,       kNever,       kToCompleted, kNever, kNever,    kNever,   kNever,   kNever}},
    {Event::kBroken, "the guest cannot be resumed",
                         {kToFailed,    kToFailed,    kToFailed,    kNever,       kNever, kNever,    kNever,   kNever,   kNever}},
    {Event::kVmmGone, "the VMM closed its connection",
                         {kToFailed,    kToFailed,    kToFailed,    kSame,        kNever, kNever,    kSame,    kSame,    kSame}},
};

constexpr Row kDestinationRows[] = {
    //                    PREPARING      PRECOPY       SWITCHING     POSTCOPY      PAUSED        RECOVERING   COMPLETED CANCELLED FAILED
    {Event::kSwitchOver, "SwitchOver",
                         {kWrong,       kWrong,       kWrong,       kWrong,       kWrong,       kWrong,       kWrong,   kWrong,   kWrong}},
    {Event::kCancel, "CancelMigration",
                         {kToCancelled, kToCancelled, kToCancelled, kWrong,       kWrong,       kWrong,       kWrong,   kSame,    kWrong}},
    {Event::kCancelAfterReady, "CancelMigration after Ready",
                         {kNever,       kNever,       kWrong,       kNever,       kNever,       kNever,       kNever,   kNever,   kNever}},
    {Event::kPause, "PauseMigration",
                         {kWrong,       kWrong,       kWrong,       kToPaused,    kToPaused,    kToPaused,    kWrong,   kWrong,   kWrong}},
    {Event::kRecover, "RecoverMigration",
                         {kWrong,       kWrong,       kWrong,       kWrong,       kToRecovering, kSame,       kWrong,   kWrong,   kWrong}},
    {Event::kSetLimits, "SetLimits",
                         {kSame,        kSame,        kSame,        kSame,        kSame,        kSame,        kWrong,   kWrong,   kWrong}},
    {Event::kAbandon, "AbandonMigration",
                         {kWrong,       kWrong,       kWrong,       kWrong,       kToFailed,    kWrong,       kWrong,   kWrong,   kWrong}},
    {Event::kDelete, "DeleteMigration",
                         {kWrong,       kWrong,       kWrong,       kWrong,       kWrong,       kWrong,       kSame,    kSame,    kSame}},
    {Event::kSession, "a session, nothing handed over",
                         {kToPrecopy,   kToPrecopy,   kToPrecopy,   kNever,       kNever,       kNever,       kNever,   kNever,   kNever}},
    {Event::kSessionAfterReady, "the same, after Ready",
                         {kNever,       kNever,       kSame,        kNever,       kNever,       kNever,       kNever,   kNever,   kNever}},
    {Event::kSwitch, "stale set or device state",
                         {kNever,       kToSwitching, kToSwitching, kNever,       kNever,       kNever,       kNever,   kNever,   kNever}},
    {Event::kCommit, "Commit, in the stream or a new session",
                         {kNever,       kNever,       kToPostcopy,  kNever,       kNever,       kNever,       kNever,   kNever,   kNever}},
    {Event::kSessionCommitted, "a session with the source that handed over",
                         {kToFailed,    kToFailed,    kNever,       kToPostcopy,  kNever,       kToPostcopy,  kNever,   kNever,   kNever}},
    {Event::kSessionLost, "the session is lost, or nobody answers",
                         {kSame,        kSame,        kSame,        kToPaused,    kToPaused,    kToPaused,    kNever,   kNever,   kNever}},
    {Event::kGivenUp, "the source is away too long, gave up, or refuses",
                         {kToCancelled, kToCancelled, kToCancelled, kNever,       kNever,       kNever,       kNever,   kNever,   kNever}},
    {Event::kDial, "it dials",
                         {kSame,        kSame,        kSame,        kNever,       kToRecovering, kToRecovering, kNever, kNever,   kNever}},
    {Event::kUntold, "every page is here, CompleteSession not answered",
                         {kNever,       kNever,       kNever,       kToPostcopy,  kToPostcopy,  kToPostcopy,  kNever,   kNever,   kNever}},
    {Event::kCompleted, "every page is here, CompleteSession answered",
                         {kNever,       kNever,       kNever,       kToCompleted, kToCompleted, kToCompleted, kNever,   kNever,   kNever}},
    {Event::kAbandoned, "the missing pages are poisoned",
                         {kNever,       kNever,       kNever,       kNever,       kToFailed,    kNever,       kNever,   kNever,   kNever}},
    {Event::kBroken, "device state does not load, faults are not served",
                         {kToFailed,    kToFailed,    kToFailed,    kToFailed,    kToFailed,    kToFailed,    kNever,   kNever,   kNever}},
    {Event::kVmmGone, "the VMM closed its connection",
                         {kToFailed,    kToFailed,    kToFailed,    kToFailed,    kToFailed,    kToFailed,    kSame,    kSame,    kSame}},
};
// clang-format on

constexpr Phase kDestinationPhases[] = {
    Phase::kPreparing, Phase::kPrecopy,   Phase::kSwitching,
    Phase::kPostcopy,  Phase::kPaused,    Phase::kRecovering,
    Phase::kCompleted, Phase::kCancelled, Phase::kFailed};
constexpr Phase kSourcePhases[] = {
    Phase::kPreparing, Phase::kPrecopy,   Phase::kSwitching, Phase::kPostcopy,
    Phase::kCompleted, Phase::kCancelled, Phase::kFailed};

absl::Span<const Row> RowsOf(MigrationRole role) {
  if (role == MigrationRole::kSource) return kSourceRows;
  return kDestinationRows;
}

template <size_t kSize>
constexpr std::array<Event, kSize> EventsIn(const Row (&rows)[kSize]) {
  std::array<Event, kSize> events{};
  for (size_t i = 0; i < kSize; ++i) events[i] = rows[i].event;
  return events;
}
constexpr auto kSourceEvents = EventsIn(kSourceRows);
constexpr auto kDestinationEvents = EventsIn(kDestinationRows);

// Why a command that the other side takes is refused here.
constexpr char kAskSource[] =
    "this daemon is the destination: ask the source to switch over";
constexpr char kAskDestination[] =
    "this daemon is the source, which serves whoever asks: ask the destination";

// REQUIRES: the phase has ended.
std::string HowItEnded(Phase phase, absl::string_view message) {
  switch (phase) {
    case Phase::kCompleted:
      return "the migration has completed";
    case Phase::kCancelled:
      return absl::StrCat("the migration was cancelled: ", message);
    default:
      return absl::StrCat("the migration has failed: ", message);
  }
}

std::string WhyNotAtDestination(Phase phase, Event command) {
  const bool handed_over = phase == Phase::kPostcopy ||
                           phase == Phase::kPaused ||
                           phase == Phase::kRecovering;
  switch (command) {
    case Event::kSwitchOver:
      return kAskSource;
    case Event::kCancel:
      return "the guest has been handed over and runs here: let the migration "
             "complete";
    case Event::kCancelAfterReady:
      return "the source is about to hand the guest over and alone can still "
             "cancel: cancel there";
    case Event::kRecover:
      if (!handed_over) break;
      return "the source is connected: there is nothing to recover from";
    case Event::kAbandon:
      if (!handed_over) break;
      return absl::StrCat("the migration is in ", NameOf(phase),
                          ", so its source may yet send what is missing: pause "
                          "it first if it is to be abandoned");
    case Event::kDelete:
      return absl::StrCat("the migration is in ", NameOf(phase),
                          ": only one that has ended can be forgotten");
    default:
      break;
  }
  return absl::StrCat("the migration is in ", NameOf(phase),
                      ": the guest has not been handed over yet; to stop here, "
                      "cancel");
}

std::string WhyNotAtSource(Phase phase, Event command) {
  switch (command) {
    case Event::kSwitchOver:
      return "no destination has opened a session yet: create the migration "
             "there first";
    case Event::kCancel:
      return "the guest has been handed over to the destination: it cannot be "
             "taken back; let the migration complete";
    case Event::kDelete:
      return WhyNotAtDestination(phase, command);
    default:
      return kAskDestination;
  }
}

std::string WhyNot(MigrationRole role, Phase phase, Event command,
                   absl::string_view message) {
  const bool source = role == MigrationRole::kSource;
  const bool only_there = source ? command == Event::kPause ||
                                       command == Event::kRecover ||
                                       command == Event::kAbandon
                                 : command == Event::kSwitchOver;
  if (HasEnded(phase) && !only_there) {
    // Whose the guest is says more than that the migration is over.
    if (source && command == Event::kCancel && phase == Phase::kCompleted) {
      return WhyNotAtSource(phase, command);
    }
    // What a switch-over would have waited for.
    if (command == Event::kSwitchOver) return std::string(message);
    return HowItEnded(phase, message);
  }
  return source ? WhyNotAtSource(phase, command)
                : WhyNotAtDestination(phase, command);
}

// Not within a character: a string field takes whole UTF-8 only.
std::string Shorten(absl::string_view message) {
  if (message.size() <= kPhaseMessageBytesMax) return std::string(message);
  size_t size = kPhaseMessageBytesMax;
  while (size > 0 && (static_cast<uint8_t>(message[size]) & 0xC0) == 0x80) {
    --size;
  }
  return std::string(message.substr(0, size));
}

std::string Cell(const Reaction& reaction) {
  switch (reaction.kind) {
    case Kind::kImpossible:
      return "–";
    case Kind::kStays:
      return "stays";
    case Kind::kGoes:
      return absl::StrCat("→ ", NameOf(reaction.to));
    case Kind::kRefused:
      return reaction.code == absl::StatusCode::kFailedPrecondition
                 ? "refused"
                 : absl::StrCat("refused, ",
                                absl::StatusCodeToString(reaction.code));
  }
  return "";
}

}  // namespace

bool HasEnded(MigrationPhase phase) {
  return phase == Phase::kCompleted || phase == Phase::kCancelled ||
         phase == Phase::kFailed;
}

absl::string_view NameOf(MigrationPhase phase) {
  constexpr const char* kNames[kMigrationPhases] = {
      "PREPARING",  "PRECOPY",   "SWITCHING", "POSTCOPY", "PAUSED",
      "RECOVERING", "COMPLETED", "CANCELLED", "FAILED"};
  return kNames[static_cast<size_t>(phase)];
}

Reaction ReactionOf(MigrationRole role, MigrationPhase phase,
                    MigrationEvent event) {
  for (const Row& row : RowsOf(role)) {
    if (row.event == event) return row.reactions[static_cast<size_t>(phase)];
  }
  return kNever;
}

absl::Span<const MigrationEvent> EventsOf(MigrationRole role) {
  if (role == MigrationRole::kSource) return kSourceEvents;
  return kDestinationEvents;
}

absl::Span<const MigrationPhase> PhasesOf(MigrationRole role) {
  if (role == MigrationRole::kSource) return kSourcePhases;
  return kDestinationPhases;
}

absl::Status Permit(MigrationRole role, MigrationPhase phase,
                    MigrationEvent command, absl::string_view message) {
  const Reaction reaction = ReactionOf(role, phase, command);
  if (reaction.kind != Kind::kRefused) return absl::OkStatus();
  return absl::Status(reaction.code, WhyNot(role, phase, command, message));
}

std::string PhaseTable(MigrationRole role) {
  std::string head = "| |";
  std::string line = "|---|";
  for (const Phase phase : PhasesOf(role)) {
    absl::StrAppend(&head, " ", NameOf(phase), " |");
    absl::StrAppend(&line, "---|");
  }
  std::string table = absl::StrCat(head, "\n", line, "\n");
  for (const Row& row : RowsOf(role)) {
    absl::StrAppend(&table, "| ", row.name, " |");
    for (const Phase phase : PhasesOf(role)) {
      absl::StrAppend(&table, " ",
                      Cell(row.reactions[static_cast<size_t>(phase)]), " |");
    }
    absl::StrAppend(&table, "\n");
  }
  return table;
}

void PhaseHistory::Add(MigrationPhase phase, int64_t at_ns,
                       absl::string_view message) {
  if (changes_.size() == kPhaseChangesKept) changes_.pop_front();
  changes_.push_back({++last_number_, phase, at_ns, Shorten(message)});
}

}  // namespace postcopy
