// The commands from command line to exit code, against fake daemons.

#include "cmd/postcopyctl/cli.h"

#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/reflection.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cmd/metrics/metrics_server.h"
#include "cmd/postcopyctl/fake_daemon.h"
#include "cmd/security/test_directory.h"
#include "gmock/gmock.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class CliTest : public ::testing::Test {
 protected:
  // The fake daemons speak plaintext.
  ExitCode Run(std::vector<std::string> arguments) {
    arguments.emplace_back("--insecure");
    return RunAsGiven(arguments);
  }

  ExitCode RunAsGiven(const std::vector<std::string>& arguments) {
    absl::FlagSaver saver;
    std::ostringstream out, err;
    CommandContext context = {.options = {}, .out = &out, .err = &err};
    context.interrupted = [] { return false; };
    ExitCode code = RunCommandLine(arguments, context);
    out_ = out.str();
    err_ = err.str();
    return code;
  }

  void ExpectUsageError(const std::vector<std::string>& arguments,
                        const std::string& sentence) {
    EXPECT_EQ(Run(arguments), ExitCode::kUsage);
    EXPECT_THAT(err_, HasSubstr(sentence));
    EXPECT_THAT(out_, IsEmpty());
  }

  void ExpectOneScreen() {
    const std::vector<std::string> lines = absl::StrSplit(out_, '\n');
    EXPECT_LE(lines.size(), 40u) << out_;
    for (const std::string& line : lines) EXPECT_LE(line.size(), 80u) << line;
    EXPECT_THAT(err_, IsEmpty());
  }

  std::string out_;
  std::string err_;
};

google::protobuf::Struct Parse(const std::string& json) {
  google::protobuf::Struct result;
  auto status = google::protobuf::util::JsonStringToMessage(json, &result);
  EXPECT_TRUE(status.ok()) << status.ToString() << "\n" << json;
  return result;
}

std::string StateIn(absl::string_view line) {
  return Parse(std::string(line)).fields().at("state").string_value();
}

TEST_F(CliTest, HelpFitsOneScreen) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{
           {"--help"}, {"help"}, {"frobnicate", "--help"}}) {
    EXPECT_EQ(Run(arguments), ExitCode::kOk);
    ExpectOneScreen();
    for (const Command& command : AllCommands()) {
      EXPECT_THAT(out_, HasSubstr(std::string(command.name)));
    }
  }
}

// With each flag it names explained, and no other.
TEST_F(CliTest, HelpOfACommandFitsOneScreen) {
  for (const Command& command : AllCommands()) {
    const std::string name(command.name);
    SCOPED_TRACE(name);
    EXPECT_EQ(Run({name, "--help"}), ExitCode::kOk);
    ExpectOneScreen();
    EXPECT_THAT(
        out_, HasSubstr("postcopyctl " + (name == "help" ? "COMMAND" : name)));
    for (const absl::string_view flag :
         absl::StrSplit(command.flags, ' ', absl::SkipEmpty())) {
      EXPECT_NE(absl::FindCommandLineFlag(flag), nullptr) << flag;
      EXPECT_THAT(out_, HasSubstr(absl::StrCat("  --", flag))) << flag;
    }
  }
  EXPECT_EQ(Run({"watch", "-h", "--nonsense"}), ExitCode::kUsage);
  EXPECT_EQ(Run({"pause", "-h"}), ExitCode::kOk);
  EXPECT_THAT(out_, Not(HasSubstr("--bandwidth")));
}

TEST_F(CliTest, WrongUsageIsExplained) {
  ExpectUsageError({}, "what to do?");
  ExpectUsageError({"frobnicate"}, "there is no command frobnicate");
  ExpectUsageError({"list", "get"}, "one command at a time");
  ExpectUsageError({"list", "--color=red"}, "there is no flag --color");
  ExpectUsageError({"list"}, "which daemon?");
  ExpectUsageError({"list", "--source=host"}, "must be host:port");
  ExpectUsageError({"list", "--source=host:0"}, "must be host:port");
  ExpectUsageError({"list", "--source=host:65536"}, "must be host:port");
  ExpectUsageError({"list", "--source=:1"}, "must be host:port");
  ExpectUsageError({"list", "--source=h:1", "--output=xml"}, "table or json");
  ExpectUsageError({"list", "--source=h:1", "--timeout=0s"}, "--timeout");
  ExpectUsageError({"get", "--source=h:1"}, "which migration?");
  ExpectUsageError({"get", "--migration_id=a"}, "which daemon?");
  ExpectUsageError({"get", "--source=h:1", "--migration_id=a b"},
                   "must be 1 to 128 characters");
  ExpectUsageError({"watch", "--source=h:1"}, "which migration?");
  ExpectUsageError({"cancel", "--migration_id=a"}, "which daemon?");
  ExpectUsageError({"switch-over", "--destination=h:1", "--migration_id=a"},
                   "needs --source");
  for (const char* command : {"pause", "recover", "abandon"}) {
    ExpectUsageError(
        {command, "--source=h:1", "--migration_id=a", "--lose_missing_pages"},
        "needs --destination");
    ExpectUsageError({command, "--destination=h:1", "--lose_missing_pages"},
                     "which migration?");
  }
  ExpectUsageError({"recover", "--destination=h:1", "--migration_id=a",
                    "--source_data=nowhere"},
                   "must be host:port");
  ExpectUsageError({"abandon", "--destination=h:1", "--migration_id=a"},
                   "needs --lose_missing_pages");
  ExpectUsageError({"limits", "--source=h:1", "--migration_id=a"},
                   "which limit?");
  ExpectUsageError(
      {"limits", "--source=h:1", "--migration_id=a", "--bandwidth=1KiB"},
      "less than 1MiB");
  ExpectUsageError({"delete", "--source=h:1"}, "which migration?");
  ExpectUsageError({"health"}, "which daemon?");
  ExpectUsageError({"create", "--source=h:1", "--vm=vm"}, "which migration?");
  ExpectUsageError({"create", "--source=h:1", "--migration_id=a"}, "which VM?");
  ExpectUsageError(
      {"create", "--destination=h:1", "--migration_id=a", "--vm=vm"},
      "needs --source_data");
}

TEST_F(CliTest, WrongUsageOfMigrateIsExplained) {
  auto expect = [this](std::vector<std::string> more,
                       const std::string& sentence) {
    std::vector<std::string> arguments = {"migrate", "--source=a:1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    ExpectUsageError(arguments, sentence);
  };
  const std::string vm = "--vm=vm", destination = "--destination=b:1";
  expect({destination}, "which VM?");
  expect({vm}, "both --source and --destination");
  expect({"--destination=a:1", vm}, "are the same daemon");
  expect({destination, "--vm=a/b"}, "must be 1 to 128 characters");
  expect({destination, vm, "--bandwidth=1023KiB"}, "less than 1MiB");
  expect({destination, vm, "--bandwidth=1MB"}, "cannot be understood");
  expect({destination, vm, "--policy=fast"}, "--policy=fast must be");
  expect({destination, vm, "--pull_order=any"}, "--pull_order=any must be");
  expect({destination, vm, "--rounds_max=1001"}, "more than 1000");
  expect({destination, vm, "--policy=postcopy-only", "--rounds_max=3"},
         "contradicts");
  expect({destination, vm, "--source_data=b"}, "must be host:port");
  expect({destination, vm, "--deadline_per_gib=61m"}, "must be 0 to 1h");
  expect({destination, vm, "--resume_command=true"}, "needs --pause_command");
  expect({destination, vm, "--pause_command=true", "--policy=auto"},
         "contradict --policy=auto");
  ExpectUsageError({"migrate", "--source=unix:/run/x", destination, vm},
                   "needs --source_data");
}

TEST_F(CliTest, DialsInPlaintextOnlyIfAskedTo) {
  EXPECT_EQ(RunAsGiven({"list", "--source=h:1"}), ExitCode::kUsage);
  EXPECT_THAT(err_, AllOf(HasSubstr("h:1 would be dialled in plaintext"),
                          HasSubstr("--tls_dir"), HasSubstr("--insecure")));
  EXPECT_EQ(RunAsGiven({"list", "--source=h:1", "--insecure", "--tls_dir=/d"}),
            ExitCode::kUsage);
  EXPECT_THAT(err_, HasSubstr("contradict each other"));
  // The kernel knows who is at a Unix socket.
  EXPECT_EQ(RunAsGiven({"list", "--source=unix:/none"}),
            ExitCode::kUnreachable);
}

TEST_F(CliTest, CertificatesThatAreMissingAreNamed) {
  EXPECT_EQ(RunAsGiven({"list", "--source=h:1", "--tls_dir=/none"}),
            ExitCode::kPrecondition);
  EXPECT_THAT(err_, HasSubstr("/none/ca-cert.pem is missing"));
}

TEST_F(CliTest, DevCertsMakesWhatDialsTls) {
  ExpectUsageError({"dev-certs", "--hosts=a"}, "where shall the files go?");
  ExpectUsageError({"dev-certs", "--dir=/d"}, "dev-certs needs --hosts");
  const TestDirectory directory;
  const std::string dir = "--dir=" + directory.path();
  EXPECT_EQ(RunAsGiven({"dev-certs", dir, "--hosts=127.0.0.1,a.example"}),
            ExitCode::kOk);
  EXPECT_THAT(err_, HasSubstr("for trials only"));
  EXPECT_EQ(RunAsGiven({"dev-certs", dir, "--hosts=a"}),
            ExitCode::kPrecondition);
  EXPECT_THAT(err_, HasSubstr("--force"));
  EXPECT_EQ(RunAsGiven({"dev-certs", dir, "--hosts=a b", "--force"}),
            ExitCode::kFailed);
  EXPECT_THAT(err_, HasSubstr("\"a b\" is no host name"));
  EXPECT_EQ(RunAsGiven({"dev-certs", dir, "--hosts=a", "--force"}),
            ExitCode::kOk);

  // This one speaks plaintext, and so is not believed.
  FakeDaemon plaintext(v1::ROLE_SOURCE);
  EXPECT_EQ(RunAsGiven({"list", "--source=" + plaintext.address(),
                        "--tls_dir=" + directory.path()}),
            ExitCode::kUnreachable);
  EXPECT_THAT(err_, HasSubstr("cannot reach the source daemon"));
}

TEST_F(CliTest, NobodyThereIsExitCode3) {
  FakeDaemon gone(v1::ROLE_SOURCE);
  gone.Stop();
  const std::string source = "--source=" + gone.address();
  EXPECT_EQ(Run({"list", source}), ExitCode::kUnreachable);
  EXPECT_THAT(err_, HasSubstr(gone.address()));
  for (const char* command :
       {"get", "watch", "switch-over", "cancel", "delete"}) {
    EXPECT_EQ(Run({command, source, "--migration_id=a"}),
              ExitCode::kUnreachable);
  }
}

TEST_F(CliTest, MetricsPrintsWhatADaemonServes) {
  auto server =
      MetricsServer::Create("127.0.0.1:0", [](MetricFamilies& families) {
        families.Counter("looks_total", "Looks.", 7);
      });
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(Run({"metrics", "--destination=" + (*server)->address()}),
            ExitCode::kOk);
  EXPECT_THAT(out_, AllOf(HasSubstr("# destination 127.0.0.1:"),
                          HasSubstr("looks_total 7\n")));
  // Plaintext always: with certificates, with none, and with such as are none.
  const std::string where = "--destination=" + (*server)->address();
  EXPECT_EQ(RunAsGiven({"metrics", where}), ExitCode::kOk) << err_;
  EXPECT_EQ(RunAsGiven({"metrics", where, "--tls_dir=/nowhere"}), ExitCode::kOk)
      << err_;
  EXPECT_THAT(out_, HasSubstr("looks_total 7\n"));
  const std::string address = (*server)->address();
  server->reset();
  EXPECT_EQ(Run({"metrics", "--source=" + address}), ExitCode::kUnreachable);
  EXPECT_THAT(err_, HasSubstr(address));
  ExpectUsageError({"metrics"}, "which daemon?");
  ExpectUsageError({"metrics", "--source=h:1", "--output=json"},
                   "--output=json does not apply");
}

class CliWithDaemonsTest : public CliTest {
 protected:
  CliWithDaemonsTest()
      : source_flag_("--source=" + source_.address()),
        destination_flag_("--destination=" + destination_.address()) {}

  // As if a migration "m" had been created on both.
  void CreateBoth(v1::MigrationState state) {
    for (FakeDaemon* daemon : {&source_, &destination_}) {
      v1::CreateMigrationRequest request;
      request.set_migration_id("m");
      request.set_vm_name("vm");
      v1::CreateMigrationResponse response;
      daemon->CreateMigration(nullptr, &request, &response);
      daemon->SetState(state);
    }
  }

  void PlayMigration() {
    ASSERT_TRUE(destination_.AwaitCreated());
    source_.Change([](v1::Migration* migration) {
      migration->set_state(v1::MIGRATION_STATE_PRECOPY);
      migration->mutable_advice()->set_recommended(true);
    });
    ASSERT_TRUE(source_.AwaitSwitchOverCall());
    for (auto state :
         {v1::MIGRATION_STATE_POSTCOPY, v1::MIGRATION_STATE_COMPLETED}) {
      destination_.SetState(state);
      source_.SetState(state);
    }
  }

  FakeDaemon source_{v1::ROLE_SOURCE};
  FakeDaemon destination_{v1::ROLE_DESTINATION};
  const std::string source_flag_;
  const std::string destination_flag_;
};

TEST_F(CliWithDaemonsTest, MigratePrintsOneJsonObject) {
  std::thread script([this] { PlayMigration(); });
  EXPECT_EQ(Run({"migrate", source_flag_, destination_flag_, "--vm=vm",
                 "--output=json"}),
            ExitCode::kOk);
  script.join();
  google::protobuf::Struct json = Parse(out_);
  EXPECT_EQ(json.fields().at("state").string_value(), "COMPLETED");
  EXPECT_THAT(json.fields().at("migration_id").string_value(),
              ::testing::StartsWith("vm-"));
  EXPECT_THAT(err_, AllOf(HasSubstr("postcopyctl: migration vm-"),
                          HasSubstr("COMPLETED")));
  EXPECT_EQ(destination_.create_request().source_address(), "127.0.0.1:7401");
}

TEST_F(CliWithDaemonsTest, MigratePrintsATable) {
  std::thread script([this] { PlayMigration(); });
  EXPECT_EQ(Run({"migrate", source_flag_, destination_flag_, "--vm=vm",
                 "--migration_id=m", "--source_data=10.0.0.1:7"}),
            ExitCode::kOk);
  script.join();
  EXPECT_THAT(out_, HasSubstr("COMPLETED\n"));
  EXPECT_EQ(destination_.create_request().source_address(), "10.0.0.1:7");
}

TEST_F(CliWithDaemonsTest, AMigrationThatFailedHasAReportToo) {
  EXPECT_EQ(Run({"migrate", source_flag_, destination_flag_, "--vm=vm",
                 "--timeout=300ms", "--output=json"}),
            ExitCode::kPrecondition);
  EXPECT_EQ(Parse(out_).fields().at("state").string_value(), "CANCELLED");
  EXPECT_THAT(err_, HasSubstr("the guest goes on at the source"));
}

TEST_F(CliWithDaemonsTest, AMigrationThatNeverWasHasNone) {
  source_.on_create = [] {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no VM vm");
  };
  EXPECT_EQ(Run({"migrate", source_flag_, destination_flag_, "--vm=vm",
                 "--output=json"}),
            ExitCode::kPrecondition);
  EXPECT_THAT(out_, IsEmpty());
  EXPECT_THAT(err_, HasSubstr("no VM vm"));
}

TEST_F(CliWithDaemonsTest, ListShowsBothDaemons) {
  CreateBoth(v1::MIGRATION_STATE_PRECOPY);
  EXPECT_EQ(Run({"list", source_flag_, destination_flag_}), ExitCode::kOk);
  EXPECT_THAT(out_, AllOf(HasSubstr("source"), HasSubstr("destination")));
  EXPECT_EQ(Run({"list", source_flag_, "--output=json"}), ExitCode::kOk);
  EXPECT_EQ(StateIn(out_), "PRECOPY");
}

TEST_F(CliWithDaemonsTest, GetShowsTheSidesAskedFor) {
  CreateBoth(v1::MIGRATION_STATE_PRECOPY);
  EXPECT_EQ(Run({"get", destination_flag_, "--migration_id=m"}), ExitCode::kOk);
  EXPECT_THAT(out_, AllOf(HasSubstr("destination"), Not(HasSubstr("source"))));
  EXPECT_EQ(Run({"get", source_flag_, "--migration_id=other"}),
            ExitCode::kPrecondition);
  EXPECT_THAT(err_, HasSubstr("no such migration"));
}

TEST_F(CliWithDaemonsTest, GetShowsTheSideThatStillKnows) {
  CreateBoth(v1::MIGRATION_STATE_COMPLETED);
  source_.Forget();
  EXPECT_EQ(Run({"get", source_flag_, destination_flag_, "--migration_id=m"}),
            ExitCode::kPrecondition);
  EXPECT_THAT(out_, HasSubstr("COMPLETED"));
}

TEST_F(CliWithDaemonsTest, WatchFollowsUntilTheEnd) {
  CreateBoth(v1::MIGRATION_STATE_POSTCOPY);
  std::thread script([this] {
    ASSERT_TRUE(source_.AwaitStreams(1) && destination_.AwaitStreams(1));
    absl::SleepFor(absl::Milliseconds(100));
    source_.SetState(v1::MIGRATION_STATE_COMPLETED);
    destination_.SetState(v1::MIGRATION_STATE_COMPLETED);
  });
  EXPECT_EQ(Run({"watch", source_flag_, destination_flag_, "--migration_id=m",
                 "--output=json"}),
            ExitCode::kOk);
  script.join();
  std::vector<std::string> lines =
      absl::StrSplit(out_, '\n', absl::SkipEmpty());
  ASSERT_GE(lines.size(), 2u);
  EXPECT_EQ(StateIn(lines.back()), "COMPLETED");
}

TEST_F(CliWithDaemonsTest, WatchSaysWhyItEndedBadly) {
  CreateBoth(v1::MIGRATION_STATE_CANCELLED);
  EXPECT_EQ(Run({"watch", source_flag_, "--migration_id=m"}),
            ExitCode::kFailed);
  EXPECT_THAT(out_, HasSubstr("CANCELLED"));
  EXPECT_THAT(err_, HasSubstr("CANCELLED at the source"));
}

TEST_F(CliWithDaemonsTest, WatchIsBounded) {
  CreateBoth(v1::MIGRATION_STATE_PRECOPY);
  EXPECT_EQ(Run({"watch", source_flag_, "--migration_id=m", "--timeout=200ms"}),
            ExitCode::kPrecondition);
  EXPECT_EQ(source_.migration().state(), v1::MIGRATION_STATE_PRECOPY);
}

TEST_F(CliWithDaemonsTest, SwitchOverHandsTheGuestOver) {
  CreateBoth(v1::MIGRATION_STATE_PRECOPY);
  source_.on_switch_over = [this] {
    source_.SetState(v1::MIGRATION_STATE_POSTCOPY);
    return grpc::Status::OK;
  };
  EXPECT_EQ(
      Run({"switch-over", source_flag_, "--migration_id=m", "--output=json"}),
      ExitCode::kOk);
  EXPECT_EQ(StateIn(out_), "POSTCOPY");
}

TEST_F(CliWithDaemonsTest, CancelAsksBothSourceFirst) {
  CreateBoth(v1::MIGRATION_STATE_PRECOPY);
  EXPECT_EQ(
      Run({"cancel", source_flag_, destination_flag_, "--migration_id=m"}),
      ExitCode::kOk);
  EXPECT_EQ(source_.migration().state(), v1::MIGRATION_STATE_CANCELLED);
  EXPECT_EQ(destination_.migration().state(), v1::MIGRATION_STATE_CANCELLED);
}

TEST_F(CliWithDaemonsTest, ACancelThatIsTooLateChangesNothing) {
  CreateBoth(v1::MIGRATION_STATE_POSTCOPY);
  EXPECT_EQ(
      Run({"cancel", source_flag_, destination_flag_, "--migration_id=m"}),
      ExitCode::kPrecondition);
  EXPECT_THAT(err_, HasSubstr("too late"));
  EXPECT_EQ(destination_.cancel_calls(), 0);
}

TEST_F(CliWithDaemonsTest, CommandsForTheDestinationLeaveTheSourceAlone) {
  CreateBoth(v1::MIGRATION_STATE_POSTCOPY);
  const auto run = [this](const std::string& command, const std::string& flag) {
    EXPECT_EQ(Run({command, source_flag_, destination_flag_, "--migration_id=m",
                   flag, "--output=json"}),
              ExitCode::kOk)
        << command << err_;
    EXPECT_EQ(StateIn(out_), "POSTCOPY");
  };
  run("pause", "--timeout=1m");
  run("recover", "--source_data=10.0.0.1:7");
  run("abandon", "--lose_missing_pages");
  EXPECT_THAT(destination_.calls(),
              ElementsAre("pause", "recover 10.0.0.1:7", "abandon 1"));
  EXPECT_THAT(source_.calls(), IsEmpty());
}

TEST_F(CliWithDaemonsTest, LimitsAndDeleteReachTheSidesGiven) {
  CreateBoth(v1::MIGRATION_STATE_COMPLETED);
  EXPECT_EQ(Run({"limits", source_flag_, destination_flag_, "--migration_id=m",
                 "--bandwidth=2MiB"}),
            ExitCode::kOk);
  EXPECT_EQ(Run({"limits", source_flag_, "--migration_id=m", "--bandwidth=0"}),
            ExitCode::kOk);
  EXPECT_EQ(
      Run({"delete", source_flag_, destination_flag_, "--migration_id=m"}),
      ExitCode::kOk);
  EXPECT_THAT(out_, IsEmpty());
  EXPECT_THAT(source_.calls(),
              ElementsAre("limit 2097152", "limit 0", "delete"));
  EXPECT_THAT(destination_.calls(), ElementsAre("limit 2097152", "delete"));
  EXPECT_EQ(Run({"delete", source_flag_, "--migration_id=other"}),
            ExitCode::kPrecondition);
}

TEST_F(CliWithDaemonsTest, CreateLeavesItToOthers) {
  EXPECT_EQ(Run({"create", source_flag_, destination_flag_, "--vm=vm",
                 "--migration_id=m", "--policy=auto", "--deadline_per_gib=5s",
                 "--bandwidth=2MiB"}),
            ExitCode::kOk)
      << err_;
  const v1::CreateMigrationRequest source = source_.create_request();
  EXPECT_EQ(source.switch_over_mode(), v1::SWITCH_OVER_MODE_AUTO);
  EXPECT_EQ(source.policy(), v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY);
  EXPECT_EQ(source.deadline_ms_per_gib(), 5000u);
  EXPECT_EQ(source.bulk_limit_bytes_per_second(), 2u << 20);
  EXPECT_EQ(source.source_address(), "");
  EXPECT_FALSE(source.validate_only());
  EXPECT_EQ(destination_.create_request().source_address(), "127.0.0.1:7401");
}

TEST_F(CliWithDaemonsTest, ADryRunCreatesNothing) {
  for (const char* command : {"create", "migrate"}) {
    EXPECT_EQ(Run({command, source_flag_, destination_flag_, "--vm=vm",
                   "--migration_id=m", "--dry-run"}),
              ExitCode::kOk)
        << err_;
    EXPECT_TRUE(source_.create_request().validate_only());
    EXPECT_TRUE(destination_.create_request().validate_only());
    EXPECT_EQ(source_.migration().state(), v1::MIGRATION_STATE_UNSPECIFIED);
    EXPECT_THAT(out_, HasSubstr("m\n"));
  }
}

TEST_F(CliWithDaemonsTest, HealthIsAskedOfBoth) {
  EXPECT_EQ(Run({"health", source_flag_, destination_flag_}), ExitCode::kOk)
      << err_;
  EXPECT_THAT(out_, AllOf(HasSubstr("source"), HasSubstr("destination"),
                          HasSubstr("SERVING")));
  EXPECT_EQ(Run({"health", source_flag_, "--output=json"}), ExitCode::kOk);
  EXPECT_EQ(Parse(out_).fields().at("health").string_value(), "SERVING");
}

}  // namespace
}  // namespace postcopy
