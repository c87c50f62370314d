#include "cmd/postcopyctl/migrate_step.h"

#include "gtest/gtest.h"

namespace postcopy {
namespace {

MigrationView View(v1::MigrationState source, v1::MigrationState destination) {
  MigrationView view;
  view.source.migration.set_state(source);
  view.destination.migration.set_state(destination);
  return view;
}

MigrationView InPrecopy(bool recommended) {
  MigrationView view =
      View(v1::MIGRATION_STATE_PRECOPY, v1::MIGRATION_STATE_PRECOPY);
  view.source.migration.mutable_advice()->set_recommended(recommended);
  return view;
}

TEST(NextStepTest, SwitchesOverWhenAdvised) {
  MigrateSituation situation;
  EXPECT_EQ(NextStep(InPrecopy(false), situation), MigrateStep::kWait);
  EXPECT_EQ(NextStep(InPrecopy(true), situation), MigrateStep::kSwitchOver);
  situation.switch_over_called = true;
  EXPECT_EQ(NextStep(InPrecopy(true), situation), MigrateStep::kWait);
}

TEST(NextStepTest, PostcopyOnlyNeedsNoAdviceButPrecopyState) {
  MigrateSituation situation = {.policy = v1::MIGRATION_POLICY_POSTCOPY_ONLY};
  EXPECT_EQ(NextStep(InPrecopy(false), situation), MigrateStep::kSwitchOver);
  EXPECT_EQ(NextStep(View(v1::MIGRATION_STATE_PREPARING,
                          v1::MIGRATION_STATE_PREPARING),
                     situation),
            MigrateStep::kWait);
}

TEST(NextStepTest, SucceedsOnlyWhenBothAreComplete) {
  MigrateSituation situation;
  EXPECT_EQ(NextStep(View(v1::MIGRATION_STATE_COMPLETED,
                          v1::MIGRATION_STATE_COMPLETED),
                     situation),
            MigrateStep::kSucceeded);
  EXPECT_EQ(NextStep(View(v1::MIGRATION_STATE_POSTCOPY,
                          v1::MIGRATION_STATE_COMPLETED),
                     situation),
            MigrateStep::kWait);
  EXPECT_EQ(NextStep(View(v1::MIGRATION_STATE_COMPLETED,
                          v1::MIGRATION_STATE_POSTCOPY),
                     situation),
            MigrateStep::kWait);
}

TEST(NextStepTest, CompletionGoesBeforeWishes) {
  MigrateSituation situation = {.interrupted = true, .expired = true};
  EXPECT_EQ(NextStep(View(v1::MIGRATION_STATE_COMPLETED,
                          v1::MIGRATION_STATE_COMPLETED),
                     situation),
            MigrateStep::kSucceeded);
  EXPECT_EQ(NextStep(InPrecopy(false), situation), MigrateStep::kInterrupted);
  situation.interrupted = false;
  EXPECT_EQ(NextStep(InPrecopy(false), situation), MigrateStep::kTimedOut);
}

TEST(NextStepTest, ABadEndOfEitherSideIsOne) {
  for (auto end : {v1::MIGRATION_STATE_CANCELLED, v1::MIGRATION_STATE_FAILED}) {
    EXPECT_EQ(NextStep(View(end, v1::MIGRATION_STATE_PRECOPY), {}),
              MigrateStep::kEndedBadly);
    EXPECT_EQ(NextStep(View(v1::MIGRATION_STATE_COMPLETED, end), {}),
              MigrateStep::kEndedBadly);
  }
}

TEST(NextStepTest, AnUnclearAnswerIsAskedForAgainWhileTheSourceWaits) {
  MigrateSituation situation = {.switch_over_called = true,
                                .may_retry_switch_over = true};
  MigrationView view = InPrecopy(true);
  view.switch_over = absl::UnavailableError("");
  EXPECT_EQ(NextStep(view, situation), MigrateStep::kSwitchOver);
  view.source.stream = absl::UnavailableError("");
  EXPECT_EQ(NextStep(view, situation), MigrateStep::kWait);
  view.source.stream = absl::OkStatus();
  view.source.migration.set_state(v1::MIGRATION_STATE_SWITCHING);
  EXPECT_EQ(NextStep(view, situation), MigrateStep::kWait);
  view.source.migration.set_state(v1::MIGRATION_STATE_PRECOPY);
  situation.may_retry_switch_over = false;
  EXPECT_EQ(NextStep(view, situation), MigrateStep::kRefused);
}

TEST(NextStepTest, ARefusalNoLongerMattersOnceTheGuestHasLeft) {
  MigrateSituation situation = {.switch_over_called = true};
  MigrationView view = InPrecopy(true);
  view.switch_over = absl::FailedPreconditionError("");
  EXPECT_EQ(NextStep(view, situation), MigrateStep::kRefused);
  view.destination.migration.set_state(v1::MIGRATION_STATE_POSTCOPY);
  EXPECT_EQ(NextStep(view, situation), MigrateStep::kWait);
}

TEST(NextStepTest, ALostSideIsLostUnlessTheDestinationIsComplete) {
  MigrationView view = InPrecopy(false);
  view.destination.lost = true;
  EXPECT_EQ(NextStep(view, {}), MigrateStep::kLost);
  view = View(v1::MIGRATION_STATE_POSTCOPY, v1::MIGRATION_STATE_COMPLETED);
  view.source.lost = true;
  EXPECT_EQ(NextStep(view, {}), MigrateStep::kSucceeded);
}

TEST(OverallStateTest, IsTheFurtherOrTheWorse) {
  auto overall = [](v1::MigrationState source, v1::MigrationState destination) {
    MigrationView view = View(source, destination);
    return OverallState(view.source.migration, view.destination.migration);
  };
  EXPECT_EQ(overall(v1::MIGRATION_STATE_PRECOPY, v1::MIGRATION_STATE_PREPARING),
            v1::MIGRATION_STATE_PRECOPY);
  EXPECT_EQ(
      overall(v1::MIGRATION_STATE_SWITCHING, v1::MIGRATION_STATE_POSTCOPY),
      v1::MIGRATION_STATE_POSTCOPY);
  EXPECT_EQ(
      overall(v1::MIGRATION_STATE_COMPLETED, v1::MIGRATION_STATE_POSTCOPY),
      v1::MIGRATION_STATE_POSTCOPY);
  EXPECT_EQ(overall(v1::MIGRATION_STATE_CANCELLED, v1::MIGRATION_STATE_PRECOPY),
            v1::MIGRATION_STATE_CANCELLED);
  EXPECT_EQ(overall(v1::MIGRATION_STATE_CANCELLED, v1::MIGRATION_STATE_FAILED),
            v1::MIGRATION_STATE_FAILED);
  // Only one side watched.
  EXPECT_EQ(
      overall(v1::MIGRATION_STATE_COMPLETED, v1::MIGRATION_STATE_UNSPECIFIED),
      v1::MIGRATION_STATE_COMPLETED);
}

}  // namespace
}  // namespace postcopy
