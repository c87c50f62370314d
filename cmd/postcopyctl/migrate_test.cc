#include "cmd/postcopyctl/migrate.h"

#include <atomic>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cmd/postcopyctl/exit_code.h"
#include "cmd/postcopyctl/fake_daemon.h"
#include "cmd/postcopyctl/migrate_step.h"
#include "dirtytrack/trace_id.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class RecordingObserver : public MigrateObserver {
 public:
  void OnView(const MigrationView& view, absl::Duration) override {
    ++views;
    if (IsHandedOver(view)) saw_hand_over = true;
  }
  void OnMessage(absl::string_view message) override {
    messages.emplace_back(message);
  }

  int views = 0;
  std::atomic<bool> saw_hand_over{false};
  std::vector<std::string> messages;
};

void Recommend(FakeDaemon* source) {
  source->Change([](v1::Migration* migration) {
    migration->mutable_advice()->set_recommended(true);
    migration->mutable_advice()->set_reason("rounds no longer shrink");
  });
}

class MigrateTest : public ::testing::Test {
 protected:
  MigrateTest() {
    options_.security = ClientSecurity::Plaintext();
    options_.source_address = source_.address();
    options_.destination_address = destination_.address();
    options_.source_data_address = "10.0.0.1:7101";
    options_.vm_name = "vm";
    options_.migration_id = "vm-1";
    options_.call_timeout = absl::Seconds(5);
    options_.watch.retry_pause = absl::Milliseconds(20);
    options_.watch.reconnect_timeout = absl::Seconds(10);
  }

  // Runs the migration with `script` playing both daemons beside it.
  MigrateResult Run(const std::function<void()>& script = [] {}) {
    std::thread thread(script);
    MigrateResult result =
        Migrate(options_, [this] { return interrupted_.load(); }, &observer_);
    thread.join();
    return result;
  }

  void StartPrecopy() {
    ASSERT_TRUE(source_.AwaitCreated());
    ASSERT_TRUE(destination_.AwaitCreated());
    destination_.SetState(v1::MIGRATION_STATE_PRECOPY);
    source_.SetState(v1::MIGRATION_STATE_PRECOPY);
  }

  void HandOver() {
    ASSERT_TRUE(source_.AwaitSwitchOverCall());
    source_.SetState(v1::MIGRATION_STATE_SWITCHING);
    destination_.SetState(v1::MIGRATION_STATE_POSTCOPY);
    source_.SetState(v1::MIGRATION_STATE_POSTCOPY);
  }

  void Complete() {
    destination_.SetState(v1::MIGRATION_STATE_COMPLETED);
    source_.SetState(v1::MIGRATION_STATE_COMPLETED);
  }

  // From creation to POSTCOPY.
  void PlayUntilPostcopy() {
    StartPrecopy();
    Recommend(&source_);
    HandOver();
  }

  void ExpectBothCancelled() {
    EXPECT_EQ(source_.migration().state(), v1::MIGRATION_STATE_CANCELLED);
    EXPECT_EQ(destination_.migration().state(), v1::MIGRATION_STATE_CANCELLED);
  }

  FakeDaemon source_{v1::ROLE_SOURCE};
  FakeDaemon destination_{v1::ROLE_DESTINATION};
  MigrateOptions options_;
  RecordingObserver observer_;
  std::atomic<bool> interrupted_{false};
};

std::string Message(const MigrateResult& result) {
  return std::string(result.status.message());
}

// --- How it should go --------------------------------------------------------

TEST_F(MigrateTest, PrecopyThenPostcopyWaitsForAdvice) {
  options_.bandwidth = ByteCount(4 << 20);
  options_.rounds_max = 12;
  options_.compress = true;
  options_.pull_order = v1::PULL_ORDER_LINEAR;
  MigrateResult result = Run([this] {
    StartPrecopy();
    absl::SleepFor(absl::Milliseconds(300));
    EXPECT_TRUE(source_.switch_over_request_ids().empty());
    Recommend(&source_);
    HandOver();
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kOk);
  EXPECT_EQ(result.source.state(), v1::MIGRATION_STATE_COMPLETED);
  EXPECT_EQ(result.destination.state(), v1::MIGRATION_STATE_COMPLETED);
  EXPECT_GE(result.total, absl::Milliseconds(300));
  EXPECT_THAT(observer_.messages,
              ElementsAre("switching over: rounds no longer shrink"));
  EXPECT_GT(observer_.views, 2);

  v1::CreateMigrationRequest source = source_.create_request();
  v1::CreateMigrationRequest destination = destination_.create_request();
  EXPECT_TRUE(IsTraceId(source.trace_id())) << source.trace_id();
  EXPECT_EQ(destination.trace_id(), source.trace_id());
  EXPECT_EQ(source.policy(), v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY);
  EXPECT_EQ(source.bulk_limit_bytes_per_second(), 4u << 20);
  EXPECT_EQ(source.rounds_max(), 12u);
  EXPECT_EQ(source.source_address(), "");
  EXPECT_EQ(destination.migration_id(), "vm-1");
  EXPECT_EQ(destination.vm_name(), "vm");
  EXPECT_EQ(destination.bulk_limit_bytes_per_second(), 4u << 20);
  EXPECT_EQ(destination.rounds_max(), 0u);
  EXPECT_TRUE(source.bulk_zstd());
  EXPECT_FALSE(destination.bulk_zstd());
  EXPECT_EQ(destination.source_address(), "10.0.0.1:7101");
  EXPECT_EQ(source.pull_order(), v1::PULL_ORDER_UNSPECIFIED);
  EXPECT_EQ(destination.pull_order(), v1::PULL_ORDER_LINEAR);
  EXPECT_NE(source.request_id(), destination.request_id());
}

TEST_F(MigrateTest, PostcopyOnlySwitchesOverAtOnce) {
  options_.policy = v1::MIGRATION_POLICY_POSTCOPY_ONLY;
  MigrateResult result = Run([this] {
    StartPrecopy();
    HandOver();
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(source_.create_request().policy(),
            v1::MIGRATION_POLICY_POSTCOPY_ONLY);
}

TEST_F(MigrateTest, PrecopyOnlyWaitsForAdvice) {
  options_.policy = v1::MIGRATION_POLICY_PRECOPY_ONLY;
  MigrateResult result = Run([this] {
    PlayUntilPostcopy();
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(destination_.create_request().policy(),
            v1::MIGRATION_POLICY_PRECOPY_ONLY);
}

TEST_F(MigrateTest, APauseInPostcopyIsWaitedFor) {
  MigrateResult result = Run([this] {
    PlayUntilPostcopy();
    destination_.SetState(v1::MIGRATION_STATE_PAUSED, "network lost");
    absl::SleepFor(absl::Milliseconds(150));
    destination_.SetState(v1::MIGRATION_STATE_RECOVERING);
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
}

// --- What keeps it from starting ---------------------------------------------

TEST_F(MigrateTest, AnUnreachableDestinationLeavesTheSourceAlone) {
  destination_.Stop();
  MigrateResult result = Run();
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kUnreachable);
  EXPECT_THAT(Message(result), AllOf(HasSubstr(destination_.address()),
                                     HasSubstr("nothing has been started")));
  EXPECT_EQ(source_.create_request().migration_id(), "");
}

TEST_F(MigrateTest, AnUnreachableSourceIsNamed) {
  source_.Stop();
  MigrateResult result = Run();
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kUnreachable);
  EXPECT_THAT(Message(result), HasSubstr(source_.address()));
}

TEST_F(MigrateTest, ARefusalByTheSourceEndsIt) {
  source_.on_create = [] {
    return grpc::Status(grpc::StatusCode::ALREADY_EXISTS, "id is taken");
  };
  MigrateResult result = Run();
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kPrecondition);
  EXPECT_THAT(Message(result), HasSubstr("id is taken"));
  // It is somebody else's migration.
  EXPECT_EQ(source_.cancel_calls(), 0);
  EXPECT_EQ(destination_.create_request().migration_id(), "");
}

TEST_F(MigrateTest, ARefusalByTheDestinationCancelsTheSource) {
  destination_.on_create = [] {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no VM of that name");
  };
  MigrateResult result = Run();
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kPrecondition);
  EXPECT_THAT(Message(result),
              AllOf(HasSubstr("no VM of that name"),
                    HasSubstr("the guest goes on at the source")));
  EXPECT_EQ(source_.migration().state(), v1::MIGRATION_STATE_CANCELLED);
  EXPECT_EQ(destination_.cancel_calls(), 0);
}

TEST_F(MigrateTest, ALostAnswerToCreateIsAskedForAgain) {
  std::atomic<int> calls{0};
  source_.on_create = [&calls] {
    return ++calls < 3 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "blip")
                       : grpc::Status::OK;
  };
  MigrateResult result = Run([this] {
    PlayUntilPostcopy();
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(calls, 3);
}

TEST_F(MigrateTest, CreateIsNotAskedForForever) {
  std::atomic<int> calls{0};
  source_.on_create = [&calls] {
    ++calls;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "blip");
  };
  MigrateResult result = Run();
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kUnreachable);
  EXPECT_THAT(Message(result), HasSubstr("is not known"));
  EXPECT_EQ(calls, 3);
}

// --- What ends it before the switch-over -------------------------------------

TEST_F(MigrateTest, ACancelledSourceCancelsTheDestination) {
  MigrateResult result = Run([this] {
    StartPrecopy();
    source_.SetState(v1::MIGRATION_STATE_CANCELLED, "by somebody else");
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kFailed);
  EXPECT_THAT(Message(result),
              HasSubstr("cancelled at the source: by somebody else"));
  ExpectBothCancelled();
}

TEST_F(MigrateTest, AFailedDestinationCancelsTheSource) {
  MigrateResult result = Run([this] {
    StartPrecopy();
    destination_.SetState(v1::MIGRATION_STATE_FAILED, "the VMM closed");
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kFailed);
  EXPECT_THAT(Message(result),
              AllOf(HasSubstr("failed at the destination: the VMM closed"),
                    HasSubstr("the guest goes on at the source")));
  EXPECT_EQ(source_.migration().state(), v1::MIGRATION_STATE_CANCELLED);
}

TEST_F(MigrateTest, AFailedSourceHasNoGuestThatGoesOn) {
  MigrateResult result = Run([this] {
    StartPrecopy();
    source_.SetState(v1::MIGRATION_STATE_FAILED, "the VMM closed");
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kFailed);
  EXPECT_THAT(Message(result), Not(HasSubstr("goes on")));
  EXPECT_EQ(destination_.migration().state(), v1::MIGRATION_STATE_CANCELLED);
}

TEST_F(MigrateTest, ARefusedSwitchOverCancelsBoth) {
  source_.on_switch_over = [] {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                        "the VMM does not answer");
  };
  MigrateResult result = Run([this] {
    StartPrecopy();
    Recommend(&source_);
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kPrecondition);
  EXPECT_THAT(Message(result), HasSubstr("the VMM does not answer"));
  ExpectBothCancelled();
  EXPECT_EQ(source_.switch_over_request_ids().size(), 1u);
}

TEST_F(MigrateTest, ASwitchOverByAnotherIsAsGood) {
  source_.on_switch_over = [this] {
    destination_.SetState(v1::MIGRATION_STATE_POSTCOPY);
    source_.SetState(v1::MIGRATION_STATE_POSTCOPY);
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                        "not in PRECOPY");
  };
  MigrateResult result = Run([this] {
    StartPrecopy();
    Recommend(&source_);
    ASSERT_TRUE(source_.AwaitSwitchOverCall());
    absl::SleepFor(absl::Milliseconds(300));
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(source_.cancel_calls(), 0);
}

TEST_F(MigrateTest, ALostAnswerToSwitchOverIsAskedForWithTheSameId) {
  std::atomic<int> calls{0};
  source_.on_switch_over = [&calls] {
    return ++calls < 2 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "blip")
                       : grpc::Status::OK;
  };
  MigrateResult result = Run([this, &calls] {
    StartPrecopy();
    Recommend(&source_);
    while (calls < 2) absl::SleepFor(absl::Milliseconds(5));
    HandOver();
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
  std::vector<std::string> ids = source_.switch_over_request_ids();
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_EQ(ids[0], ids[1]);
}

TEST_F(MigrateTest, TheTimeLimitCancels) {
  options_.timeout = absl::Milliseconds(300);
  MigrateResult result = Run([this] { StartPrecopy(); });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kPrecondition);
  EXPECT_THAT(Message(result),
              AllOf(HasSubstr("time limit of 300ms"),
                    HasSubstr("the guest goes on at the source")));
  ExpectBothCancelled();
}

TEST_F(MigrateTest, AnInterruptCancels) {
  MigrateResult result = Run([this] {
    StartPrecopy();
    interrupted_ = true;
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kFailed);
  EXPECT_THAT(Message(result), HasSubstr("the guest goes on at the source"));
  ExpectBothCancelled();
}

TEST_F(MigrateTest, ACancelThatCannotBeDeliveredIsAdmitted) {
  auto refuse = [] {
    return grpc::Status(grpc::StatusCode::INTERNAL, "stuck");
  };
  source_.on_cancel = destination_.on_cancel = refuse;
  MigrateResult result = Run([this] {
    StartPrecopy();
    interrupted_ = true;
  });
  EXPECT_THAT(Message(result),
              AllOf(HasSubstr("is not known"), HasSubstr("postcopyctl get")));
}

// --- What ends it after the switch-over --------------------------------------

TEST_F(MigrateTest, AnInterruptAfterTheSwitchOverChangesNothing) {
  MigrateResult result = Run([this] {
    PlayUntilPostcopy();
    while (!observer_.saw_hand_over) absl::SleepFor(absl::Milliseconds(5));
    interrupted_ = true;
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kFailed);
  EXPECT_THAT(Message(result), AllOf(HasSubstr("goes on without this program"),
                                     HasSubstr("postcopyctl watch")));
  EXPECT_EQ(source_.cancel_calls() + destination_.cancel_calls(), 0);
}

TEST_F(MigrateTest, TheTimeLimitAfterTheSwitchOverChangesNothing) {
  options_.timeout = absl::Seconds(2);
  MigrateResult result = Run([this] { PlayUntilPostcopy(); });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kPrecondition);
  EXPECT_THAT(Message(result), HasSubstr("goes on without this program"));
  EXPECT_EQ(destination_.migration().state(), v1::MIGRATION_STATE_POSTCOPY);
}

TEST_F(MigrateTest, AnInterruptWhileSwitchingLetsTheSourceDecide) {
  source_.on_cancel = [] {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "too late");
  };
  MigrateResult result = Run([this] {
    StartPrecopy();
    Recommend(&source_);
    ASSERT_TRUE(source_.AwaitSwitchOverCall());
    source_.SetState(v1::MIGRATION_STATE_SWITCHING);
    interrupted_ = true;
  });
  EXPECT_THAT(Message(result), HasSubstr("goes on without this program"));
  EXPECT_EQ(destination_.cancel_calls(), 0);
}

TEST_F(MigrateTest, AFailureAfterTheSwitchOverIsSaid) {
  MigrateResult result = Run([this] {
    PlayUntilPostcopy();
    destination_.SetState(v1::MIGRATION_STATE_FAILED, "the VMM was killed");
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kFailed);
  EXPECT_THAT(Message(result), AllOf(HasSubstr("the VMM was killed"),
                                     Not(HasSubstr("goes on"))));
}

// --- Broken streams ----------------------------------------------------------

TEST_F(MigrateTest, BrokenStreamsAreOpenedAgain) {
  MigrateResult result = Run([this] {
    StartPrecopy();
    ASSERT_TRUE(source_.AwaitStreams(1));
    source_.BreakStreams(grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset"));
    ASSERT_TRUE(source_.AwaitStreams(2));
    Recommend(&source_);
    HandOver();
    ASSERT_TRUE(destination_.AwaitStreams(1));
    // An orderly end is no end either.
    destination_.BreakStreams(grpc::Status::OK);
    ASSERT_TRUE(destination_.AwaitStreams(2));
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
}

TEST_F(MigrateTest, ASourceThatStaysSilentIsGivenUp) {
  options_.watch.reconnect_timeout = absl::Milliseconds(400);
  MigrateResult result = Run([this] {
    StartPrecopy();
    source_.RefuseStreams();
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kUnreachable);
  EXPECT_THAT(Message(result), HasSubstr("the guest goes on at the source"));
  ExpectBothCancelled();
}

TEST_F(MigrateTest, AStreamThatSaysNothingIsOpenedAgain) {
  options_.watch.silence_max = absl::Milliseconds(200);
  MigrateResult result = Run([this] {
    StartPrecopy();
    // The fake daemon reports changes only, so both streams fall silent.
    ASSERT_TRUE(source_.AwaitStreams(3));
    Recommend(&source_);
    HandOver();
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
}

TEST_F(MigrateTest, ASourceThatForgotIsNotWaitedFor) {
  MigrateResult result = Run([this] {
    StartPrecopy();
    source_.Forget();
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kPrecondition);
  EXPECT_EQ(destination_.migration().state(), v1::MIGRATION_STATE_CANCELLED);
}

TEST_F(MigrateTest, ACompleteDestinationNeedsNoSource) {
  options_.watch.reconnect_timeout = absl::Milliseconds(300);
  MigrateResult result = Run([this] {
    PlayUntilPostcopy();
    source_.RefuseStreams();
    destination_.SetState(v1::MIGRATION_STATE_COMPLETED);
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_THAT(observer_.messages.back(),
              HasSubstr("every page is at the destination"));
}

// --- Commands of the user's
// ---------------------------------------------------

class MigrateHooksTest : public MigrateTest {
 protected:
  MigrateHooksTest() {
    const std::string note =
        "echo $POSTCOPY_EVENT $POSTCOPY_SIDE $POSTCOPY_VM "
        "$POSTCOPY_MIGRATION_ID >> " +
        path_;
    options_.pause_command = note;
    options_.resume_command = note;
  }
  ~MigrateHooksTest() override { std::remove(path_.c_str()); }

  std::string Notes() const {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const std::string path_ = ::testing::TempDir() + "/hooks";
};

constexpr char kPausedAtSource[] = "pause source vm vm-1\n";
constexpr char kResumedAtSource[] = "resume source vm vm-1\n";
constexpr char kResumedAtDestination[] = "resume destination vm vm-1\n";

TEST_F(MigrateHooksTest, RunAroundTheHandOver) {
  std::string at_switch_over;
  source_.on_switch_over = [&] {
    at_switch_over = Notes();
    return grpc::Status::OK;
  };
  MigrateResult result = Run([this] {
    PlayUntilPostcopy();
    Complete();
  });
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(at_switch_over, kPausedAtSource);
  EXPECT_EQ(Notes(), absl::StrCat(kPausedAtSource, kResumedAtDestination));
}

TEST_F(MigrateHooksTest, APauseThatFailsCancels) {
  options_.pause_command += "; exit 3";
  MigrateResult result = Run([this] {
    StartPrecopy();
    Recommend(&source_);
  });
  EXPECT_THAT(Message(result),
              AllOf(HasSubstr("the pause command for the source: exit code 3"),
                    HasSubstr("the guest goes on at the source")));
  ExpectBothCancelled();
  EXPECT_TRUE(source_.switch_over_request_ids().empty());
  EXPECT_EQ(Notes(), absl::StrCat(kPausedAtSource, kResumedAtSource));
}

TEST_F(MigrateHooksTest, APauseThatDoesNotEndCancels) {
  options_.pause_command += "; sleep 1000";
  options_.hook_timeout = absl::Milliseconds(500);
  MigrateResult result = Run([this] {
    StartPrecopy();
    Recommend(&source_);
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kPrecondition);
  EXPECT_THAT(Message(result), HasSubstr("has not ended within 500ms"));
  ExpectBothCancelled();
  EXPECT_EQ(Notes(), absl::StrCat(kPausedAtSource, kResumedAtSource));
}

TEST_F(MigrateHooksTest, ARefusedSwitchOverResumesAtTheSource) {
  source_.on_switch_over = [] {
    return grpc::Status(grpc::StatusCode::ABORTED, "the network is lost");
  };
  MigrateResult result = Run([this] {
    StartPrecopy();
    Recommend(&source_);
  });
  EXPECT_FALSE(result.status.ok());
  EXPECT_EQ(Notes(), absl::StrCat(kPausedAtSource, kResumedAtSource));
}

// The guest is there, and the migration goes on; but it does not run.
TEST_F(MigrateHooksTest, AResumeThatFailsIsSaid) {
  options_.resume_command = "exit 4";
  MigrateResult result = Run([this] {
    PlayUntilPostcopy();
    Complete();
  });
  EXPECT_EQ(ExitCodeOf(result.status), ExitCode::kFailed);
  EXPECT_EQ(Message(result),
            "the resume command for the destination: exit code 4");
  EXPECT_EQ(destination_.migration().state(), v1::MIGRATION_STATE_COMPLETED);
}

// To run it in two places would be worse than to run it in none.
TEST_F(MigrateHooksTest, NobodyIsResumedWhoMayRunElsewhere) {
  options_.call_timeout = absl::Seconds(1);
  source_.on_cancel = [] {
    return grpc::Status(grpc::StatusCode::INTERNAL, "stuck");
  };
  MigrateResult result = Run([this] {
    StartPrecopy();
    Recommend(&source_);
    ASSERT_TRUE(source_.AwaitSwitchOverCall());
    source_.SetState(v1::MIGRATION_STATE_SWITCHING);
    interrupted_ = true;
  });
  EXPECT_THAT(Message(result),
              HasSubstr("where the guest belongs is not known"));
  EXPECT_EQ(Notes(), kPausedAtSource);
}

// A source that has completed has no guest, whatever is heard of the
// destination.
TEST_F(MigrateHooksTest, ACompletedSourceIsNotResumed) {
  options_.call_timeout = absl::Seconds(1);
  options_.watch.reconnect_timeout = absl::Milliseconds(300);
  MigrateResult result = Run([this] {
    StartPrecopy();
    Recommend(&source_);
    ASSERT_TRUE(source_.AwaitSwitchOverCall());
    destination_.Stop();
    source_.SetState(v1::MIGRATION_STATE_COMPLETED);
  });
  EXPECT_FALSE(result.status.ok());
  EXPECT_EQ(Notes(), kPausedAtSource);
}

}  // namespace
}  // namespace postcopy
