#include "dirtytrack/migration_phase.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

using Event = MigrationEvent;
using Kind = Reaction::Kind;
using Phase = MigrationPhase;

constexpr MigrationRole kRoles[] = {MigrationRole::kSource,
                                    MigrationRole::kDestination};
constexpr Event kCommands[] = {Event::kSwitchOver,       Event::kCancel,
                               Event::kCancelAfterReady, Event::kPause,
                               Event::kRecover,          Event::kSetLimits,
                               Event::kAbandon,          Event::kDelete};

bool IsCommand(Event event) {
  for (const Event command : kCommands) {
    if (event == command) return true;
  }
  return false;
}

bool IsHandedOver(Phase phase) {
  return phase == Phase::kPostcopy || phase == Phase::kPaused ||
         phase == Phase::kRecovering || phase == Phase::kCompleted;
}

// The phases that events lead to from those of `from`.
std::set<Phase> Reachable(MigrationRole role, std::set<Phase> from) {
  for (size_t before = 0; before != from.size();) {
    before = from.size();
    for (const Phase phase : std::set<Phase>(from)) {
      for (const Event event : EventsOf(role)) {
        const Reaction reaction = ReactionOf(role, phase, event);
        if (reaction.kind == Kind::kGoes) from.insert(reaction.to);
      }
    }
  }
  return from;
}

TEST(MigrationPhaseTest, DocsHaveTheTables) {
  std::ifstream file("docs/protocol.md");
  std::stringstream docs;
  docs << file.rdbuf();
  for (const MigrationRole role : kRoles) {
    EXPECT_TRUE(absl::StrContains(docs.str(), "\n" + PhaseTable(role) + "\n"))
        << "docs/protocol.md must have this table:\n"
        << PhaseTable(role);
  }
}

TEST(MigrationPhaseTest, EveryPhaseOfASideIsReachedAndEveryOneEnds) {
  for (const MigrationRole role : kRoles) {
    const auto phases = PhasesOf(role);
    EXPECT_EQ(Reachable(role, {Phase::kPreparing}),
              std::set<Phase>(phases.begin(), phases.end()));
    for (const Phase phase : phases) {
      bool ends = false;
      for (const Phase end : Reachable(role, {phase})) ends |= HasEnded(end);
      EXPECT_TRUE(ends) << NameOf(phase);
    }
  }
}

TEST(MigrationPhaseTest, WhatHasEndedStays) {
  for (const MigrationRole role : kRoles) {
    for (const Phase phase :
         {Phase::kCompleted, Phase::kCancelled, Phase::kFailed}) {
      EXPECT_EQ(Reachable(role, {phase}), std::set<Phase>{phase});
    }
  }
}

// The guest never runs at the source again.
TEST(MigrationPhaseTest, WhatIsHandedOverIsNeverCancelled) {
  for (const MigrationRole role : kRoles) {
    for (const Phase phase : PhasesOf(role)) {
      if (!IsHandedOver(phase)) continue;
      const std::set<Phase> reachable = Reachable(role, {phase});
      EXPECT_FALSE(reachable.contains(Phase::kCancelled)) << NameOf(phase);
      EXPECT_FALSE(reachable.contains(Phase::kPrecopy)) << NameOf(phase);
      EXPECT_FALSE(reachable.contains(Phase::kSwitching)) << NameOf(phase);
    }
  }
}

// Only the commit hands a guest over, and only from SWITCHING; the destination
// may hear of it in a new session.
TEST(MigrationPhaseTest, OnlyTheCommitHandsOver) {
  for (const MigrationRole role : kRoles) {
    for (const Phase phase : PhasesOf(role)) {
      if (IsHandedOver(phase)) continue;
      for (const Event event : EventsOf(role)) {
        const Reaction reaction = ReactionOf(role, phase, event);
        if (reaction.kind != Kind::kGoes || !IsHandedOver(reaction.to)) {
          continue;
        }
        EXPECT_EQ(event, Event::kCommit);
        EXPECT_EQ(phase, Phase::kSwitching);
      }
    }
  }
}

TEST(MigrationPhaseTest, CommandsAreRefusedWithASentenceAndNothingElseIs) {
  for (const MigrationRole role : kRoles) {
    for (const Event event : EventsOf(role)) {
      for (const Phase phase : PhasesOf(role)) {
        SCOPED_TRACE(
            absl::StrCat(static_cast<int>(event), " in ", NameOf(phase)));
        const Reaction reaction = ReactionOf(role, phase, event);
        const absl::Status status = Permit(role, phase, event, "the reason");
        if (reaction.kind != Kind::kRefused) {
          EXPECT_TRUE(status.ok());
          if (IsCommand(event) && event != Event::kCancelAfterReady) {
            EXPECT_NE(reaction.kind, Kind::kImpossible);
          }
          continue;
        }
        EXPECT_TRUE(IsCommand(event));
        EXPECT_EQ(status.code(), reaction.code);
        EXPECT_GE(status.message().size(), 10u);
      }
    }
  }
}

TEST(MigrationPhaseTest, TheSentenceSaysWhatToDo) {
  const auto why = [](MigrationRole role, Phase phase, Event command) {
    return std::string(Permit(role, phase, command, "no memory").message());
  };
  constexpr auto kSource = MigrationRole::kSource;
  constexpr auto kDestination = MigrationRole::kDestination;
  EXPECT_EQ(why(kSource, Phase::kPostcopy, Event::kPause),
            "this daemon is the source, which serves whoever asks: ask the "
            "destination");
  EXPECT_EQ(why(kDestination, Phase::kFailed, Event::kSwitchOver),
            "this daemon is the destination: ask the source to switch over");
  EXPECT_EQ(why(kDestination, Phase::kPrecopy, Event::kPause),
            "the migration is in PRECOPY: the guest has not been handed over "
            "yet; to stop here, cancel");
  EXPECT_EQ(why(kDestination, Phase::kPostcopy, Event::kRecover),
            "the source is connected: there is nothing to recover from");
  EXPECT_EQ(
      why(kDestination, Phase::kRecovering, Event::kAbandon),
      "the migration is in RECOVERING, so its source may yet send what is "
      "missing: pause it first if it is to be abandoned");
  EXPECT_EQ(why(kDestination, Phase::kFailed, Event::kSetLimits),
            "the migration has failed: no memory");
  EXPECT_EQ(why(kSource, Phase::kPrecopy, Event::kDelete),
            "the migration is in PRECOPY: only one that has ended can be "
            "forgotten");
  EXPECT_EQ(why(kSource, Phase::kCancelled, Event::kSwitchOver), "no memory");
  EXPECT_EQ(why(kSource, Phase::kCompleted, Event::kCancel),
            "the guest has been handed over to the destination: it cannot be "
            "taken back; let the migration complete");
}

TEST(PhaseHistoryTest, KeepsSoManyAndNumbersThemOn) {
  PhaseHistory history;
  for (size_t i = 1; i <= kPhaseChangesKept + 1; ++i) {
    history.Add(Phase::kPaused, static_cast<int64_t>(i), "why");
    if (i == kPhaseChangesKept) {
      EXPECT_EQ(history.changes().front().number, 1u);
    }
  }
  const std::vector<PhaseChange> changes = history.changes();
  ASSERT_EQ(changes.size(), kPhaseChangesKept);
  EXPECT_EQ(changes.front().number, 2u);
  EXPECT_EQ(changes.back().number, kPhaseChangesKept + 1);
  EXPECT_EQ(changes.back().at_ns, static_cast<int64_t>(kPhaseChangesKept + 1));
}

TEST(PhaseHistoryTest, CutsMessagesBetweenCharacters) {
  PhaseHistory history;
  history.Add(Phase::kPaused, 0, std::string(kPhaseMessageBytesMax, 'x'));
  history.Add(Phase::kPaused, 0, std::string(kPhaseMessageBytesMax + 1, 'x'));
  history.Add(Phase::kPaused, 0,
              std::string(kPhaseMessageBytesMax - 1, 'x') + "é");
  EXPECT_EQ(history.changes()[0].message.size(), kPhaseMessageBytesMax);
  EXPECT_EQ(history.changes()[1].message.size(), kPhaseMessageBytesMax);
  EXPECT_EQ(history.changes()[2].message.size(), kPhaseMessageBytesMax - 1);
}

}  // namespace
}  // namespace postcopy
