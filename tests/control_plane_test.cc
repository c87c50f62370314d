// The control plane as orchestrators meet it: real daemons, real gRPC, guests
// that check their memory.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/control/migration_service.h"
#include "cmd/demovm/demo_vmm.h"
#include "cmd/demovm/guest_ram.h"
#include "cmd/demovm/machine.h"
#include "tests/fault_proxy.h"
#include "tests/two_hosts.h"

namespace postcopy {
namespace {

constexpr char kVm[] = "guest";
// Slow enough that a phase lasts until the test has done what it wants in it.
constexpr uint64_t kSlowBulk = 4 << 20;

using Stub = v1::MigrationService::Stub;

#define ASSERT_OK(expression)                        \
  do {                                               \
    const absl::Status& status_ = (expression);      \
    ASSERT_TRUE(status_.ok()) << status_.ToString(); \
  } while (false)

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
}

TwoHosts::Done InState(v1::MigrationState state) {
  return [state](const v1::Migration& m) { return m.state() == state; };
}

// An orchestrator of one daemon.
class Client {
 public:
  explicit Client(const std::string& address)
      : stub_(v1::MigrationService::NewStub(Dial(address))) {}

  absl::Status Create(const v1::CreateMigrationRequest& request,
                      v1::Migration* migration = nullptr) {
    grpc::ClientContext context;
    v1::CreateMigrationResponse response;
    absl::Status status =
        FromGrpc(stub_->CreateMigration(&context, request, &response));
    if (migration != nullptr) *migration = response.migration();
    return status;
  }
  absl::Status SwitchOver(const std::string& request_id) {
    return Call(&Stub::SwitchOver, Request<v1::SwitchOverRequest>(request_id));
  }
  absl::Status Cancel(const std::string& request_id) {
    return Call(&Stub::CancelMigration,
                Request<v1::CancelMigrationRequest>(request_id));
  }
  absl::Status Pause(const std::string& request_id) {
    return Call(&Stub::PauseMigration,
                Request<v1::PauseMigrationRequest>(request_id));
  }
  absl::Status Recover(const std::string& request_id,
                       const std::string& address = "") {
    auto request = Request<v1::RecoverMigrationRequest>(request_id);
    request.set_source_address(address);
    return Call(&Stub::RecoverMigration, request);
  }
  absl::Status SetLimit(const std::string& request_id, uint64_t limit) {
    auto request = Request<v1::SetLimitsRequest>(request_id);
    request.set_bulk_limit_bytes_per_second(limit);
    return Call(&Stub::SetLimits, request);
  }
  absl::Status Abandon(const std::string& request_id, bool sure) {
    auto request = Request<v1::AbandonMigrationRequest>(request_id);
    request.set_lose_missing_pages(sure);
    return Call(&Stub::AbandonMigration, request);
  }
  absl::Status Delete(const std::string& request_id) {
    return Call(&Stub::DeleteMigration,
                Request<v1::DeleteMigrationRequest>(request_id));
  }
  int Count() {
    grpc::ClientContext context;
    v1::ListMigrationsResponse response;
    EXPECT_TRUE(stub_->ListMigrations(&context, {}, &response).ok());
    return response.migrations_size();
  }
  Stub& stub() { return *stub_; }

 private:
  template <typename RequestType>
  static RequestType Request(const std::string& request_id) {
    RequestType request;
    request.set_request_id(request_id);
    request.set_migration_id(kVm);
    return request;
  }
  template <typename RequestType, typename ResponseType>
  absl::Status Call(grpc::Status (Stub::*method)(grpc::ClientContext*,
                                                 const RequestType&,
                                                 ResponseType*),
                    const RequestType& request) {
    grpc::ClientContext context;
    ResponseType response;
    return FromGrpc((stub_.get()->*method)(&context, request, &response));
  }

  const std::unique_ptr<Stub> stub_;
};

class ControlPlaneTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string why = WhyNoUserfaultfd();
    if (!why.empty()) GTEST_SKIP() << "no userfaultfd: " << why;
  }

  void Begin(TwoHosts::Options options = {}) {
    auto hosts = TwoHosts::Create(options);
    ASSERT_OK(hosts.status());
    hosts_ = *std::move(hosts);
    ASSERT_OK(hosts_->AttachBoth(kVm));
    source_ = std::make_unique<Client>(hosts_->control_address());
    destination_ =
        std::make_unique<Client>(hosts_->destination_control_address());
  }
  // The guest runs at the destination, and most of its pages are missing.
  void RunInPostcopy() {
    ASSERT_OK(
        hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_POSTCOPY_ONLY, kSlowBulk));
    ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
    ASSERT_OK(hosts_->SwitchOver(kVm));
    ASSERT_OK(hosts_->AwaitDestination(kVm, [](const v1::Migration& m) {
      return m.pages().background() > 0;
    }));
  }
  void ExpectCorrect(const absl::StatusOr<demovm::FinalReport>& report) {
    ASSERT_OK(report.status());
    EXPECT_EQ(report->progress.mismatches, 0u);
    ASSERT_TRUE(report->verdict.has_value());
    EXPECT_TRUE(report->verdict->ok()) << ToString(*report->verdict);
  }
  void ExpectArrived() {
    ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
    EXPECT_EQ(hosts_->AtDestination(kVm).state(), v1::MIGRATION_STATE_COMPLETED)
        << hosts_->AtDestination(kVm).ShortDebugString();
    ExpectCorrect(hosts_->FinishDestination());
  }

  std::unique_ptr<TwoHosts> hosts_;
  std::unique_ptr<Client> source_;
  std::unique_ptr<Client> destination_;
};

void ExpectCode(const absl::Status& status, absl::StatusCode code) {
  EXPECT_EQ(status.code(), code) << status;
}

// --- Pause, Recover, SetLimits, Abandon, Delete.

// Paused by request it stays so, and goes on by request, at another address.
TEST_F(ControlPlaneTest, PausesAndRecovers) {
  Begin();
  RunInPostcopy();
  ExpectCode(source_->Pause("p0"), absl::StatusCode::kFailedPrecondition);
  ASSERT_OK(destination_->Pause("p1"));
  v1::Migration paused = hosts_->AtDestination(kVm);
  EXPECT_EQ(paused.state(), v1::MIGRATION_STATE_PAUSED);
  EXPECT_TRUE(paused.pause_requested());
  EXPECT_EQ(paused.source_address(), hosts_->network().address());
  hosts_->network().SetRefuse(true);
  ASSERT_OK(destination_->Recover("r1", hosts_->data_address()));
  ASSERT_OK(hosts_->AwaitDestination(
      kVm, [](const v1::Migration& m) { return m.recoveries() == 1; }));
  EXPECT_EQ(hosts_->AtDestination(kVm).source_address(),
            hosts_->data_address());
  // The same once more is done already, and pauses nothing.
  ASSERT_OK(destination_->Pause("p1"));
  EXPECT_FALSE(hosts_->AtDestination(kVm).pause_requested());
  ExpectCode(destination_->Recover("p1"), absl::StatusCode::kAlreadyExists);
  ASSERT_OK(source_->SetLimit("l1", 0));
  ExpectArrived();
}

// At 1 MiB/s it would take longer than the test waits; the limit is lifted
// while the source waits for it, and stays lifted over a recovery.
TEST_F(ControlPlaneTest, LimitsTakeEffectAtOnceAndStay) {
  Begin({.ram = ByteCount(96 << 20)});
  ASSERT_OK(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_POSTCOPY_ONLY, 1 << 20));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  EXPECT_EQ(hosts_->AtSource(kVm).bulk_limit_bytes_per_second(), 1u << 20);
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ASSERT_OK(hosts_->AwaitDestination(
      kVm, [](const v1::Migration& m) { return m.pages().background() > 0; }));
  ExpectCode(source_->SetLimit("l0", (1 << 20) - 1),
             absl::StatusCode::kInvalidArgument);
  ASSERT_OK(source_->SetLimit("l1", uint64_t{1} << 40));
  hosts_->network().Cut();
  ASSERT_OK(destination_->SetLimit("l1", uint64_t{1} << 39));
  EXPECT_EQ(hosts_->AtSource(kVm).bulk_limit_bytes_per_second(),
            uint64_t{1} << 40);
  EXPECT_EQ(hosts_->AtDestination(kVm).bulk_limit_bytes_per_second(),
            uint64_t{1} << 39);
  ExpectArrived();
  ExpectCode(destination_->SetLimit("l2", 0),
             absl::StatusCode::kFailedPrecondition);
}

// What has ended may be forgotten, once; what has not may not.
TEST_F(ControlPlaneTest, Deletes) {
  Begin();
  RunInPostcopy();
  ExpectCode(source_->Delete("d0"), absl::StatusCode::kFailedPrecondition);
  ExpectCode(destination_->Delete("d0"), absl::StatusCode::kFailedPrecondition);
  ASSERT_OK(source_->SetLimit("l1", 0));
  ExpectArrived();
  ASSERT_OK(hosts_->AwaitSource(kVm, MigrationHasEnded));
  for (Client* client : {source_.get(), destination_.get()}) {
    EXPECT_EQ(client->Count(), 1);
    ASSERT_OK(client->Delete("d1"));
    ASSERT_OK(client->Delete("d1"));
    ExpectCode(client->Delete("d2"), absl::StatusCode::kNotFound);
    EXPECT_EQ(client->Count(), 0);
  }
  // A late copy of the request that created it creates nothing.
  v1::CreateMigrationRequest request = hosts_->SourceRequest(kVm);
  request.set_policy(v1::MIGRATION_POLICY_POSTCOPY_ONLY);
  request.set_bulk_limit_bytes_per_second(kSlowBulk);
  ExpectCode(source_->Create(request), absl::StatusCode::kNotFound);
}

TEST_F(ControlPlaneTest, AbandonWantsToBeSureAndPaused) {
  Begin();
  RunInPostcopy();
  ExpectCode(destination_->Abandon("a1", /*sure=*/true),
             absl::StatusCode::kFailedPrecondition);
  ASSERT_OK(destination_->Pause("p1"));
  ExpectCode(destination_->Abandon("a2", /*sure=*/false),
             absl::StatusCode::kInvalidArgument);
  ExpectCode(source_->Abandon("a3", /*sure=*/true),
             absl::StatusCode::kFailedPrecondition);
  ASSERT_OK(destination_->Recover("r1"));
  ASSERT_OK(source_->SetLimit("l1", 0));
  ExpectArrived();
}

// The guest of this process finds SIGBUS where pages are missing: neither
// zeros nor an end of waiting.
TEST_F(ControlPlaneTest, AbandonedPagesAreSigbus) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        // AddressSanitizer would report it and exit.
        ::signal(SIGBUS, SIG_DFL);
        Begin();
        RunInPostcopy();
        ASSERT_OK(destination_->Pause("p1"));
        // Nobody will remove it.
        std::filesystem::remove_all(hosts_->directory());
        const absl::Status status = destination_->Abandon("a1", true);
        // Unless the guest was quicker.
        fprintf(stderr, "%s\n", status.ToString().c_str());
        ::pause();
      },
      ::testing::KilledBySignal(SIGBUS), "");
}

// --- Deciding.

TEST_F(ControlPlaneTest, SwitchesOverByItself) {
  Begin();
  v1::CreateMigrationRequest request = hosts_->SourceRequest(kVm);
  request.set_switch_over_mode(v1::SWITCH_OVER_MODE_AUTO);
  v1::Migration created;
  ASSERT_OK(source_->Create(request, &created));
  EXPECT_EQ(created.switch_over_mode(), v1::SWITCH_OVER_MODE_AUTO);
  EXPECT_EQ(created.deadline_ms_per_gib(), 30'000u);
  ASSERT_OK(destination_->Create(hosts_->DestinationRequest(kVm)));
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  ASSERT_OK(hosts_->AwaitSource(kVm, MigrationHasEnded));
  const v1::Migration source = hosts_->AtSource(kVm);
  EXPECT_TRUE(source.advice().recommended());
  EXPECT_NE(source.estimate().verdict(), v1::SWITCH_OVER_VERDICT_WAIT);
  EXPECT_TRUE(source.estimate().has_dirty_bytes_per_second());
  EXPECT_TRUE(source.estimate().has_bandwidth_bytes_per_second());
  EXPECT_TRUE(source.estimate().has_downtime_us());
  EXPECT_TRUE(source.estimate().has_stall_ms());
  EXPECT_FALSE(hosts_->AtDestination(kVm).has_estimate());
  ExpectArrived();
}

// All is checked and the guest watched, and nothing is there afterwards.
TEST_F(ControlPlaneTest, DryRunLeavesNothing) {
  Begin();
  v1::CreateMigrationRequest request = hosts_->SourceRequest(kVm);
  request.set_validate_only(true);
  request.set_bulk_limit_bytes_per_second(8 << 20);
  v1::Migration looked;
  ASSERT_OK(source_->Create(request, &looked));
  EXPECT_EQ(looked.state(), v1::MIGRATION_STATE_UNSPECIFIED);
  EXPECT_GT(looked.estimate().dirty_bytes_per_second(), 0u);
  EXPECT_EQ(looked.estimate().bandwidth_bytes_per_second(), 8u << 20);
  EXPECT_GT(looked.estimate().unsent_bytes(), 0u);
  request.set_vm_name("nobody");
  ExpectCode(source_->Create(request), absl::StatusCode::kNotFound);
  v1::CreateMigrationRequest other = hosts_->DestinationRequest(kVm);
  other.set_validate_only(true);
  ASSERT_OK(destination_->Create(other, &looked));
  EXPECT_EQ(looked.role(), v1::ROLE_DESTINATION);
  other.clear_source_address();
  ExpectCode(destination_->Create(other), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(source_->Count() + destination_->Count(), 0);

  ASSERT_OK(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY));
  ASSERT_OK(hosts_->AwaitSource(
      kVm, [](const v1::Migration& m) { return m.rounds() >= 2; }));
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ExpectArrived();
}

// --- Two orchestrators.

// Both results of two calls made at once.
std::pair<absl::Status, absl::Status> AtOnce(
    const std::function<absl::Status()>& one,
    const std::function<absl::Status()>& other) {
  absl::Status first;
  std::thread thread([&] { first = one(); });
  absl::Status second = other();
  thread.join();
  return {std::move(first), std::move(second)};
}

// Exactly one creates; the other is told who has the VM.
TEST_F(ControlPlaneTest, OneOfTwoOrchestratorsCreates) {
  Begin();
  Client other(hosts_->control_address());
  v1::CreateMigrationRequest mine = hosts_->SourceRequest(kVm);
  v1::CreateMigrationRequest theirs = mine;
  theirs.set_request_id("theirs");
  theirs.set_migration_id("theirs");
  const auto [first, second] = AtOnce([&] { return source_->Create(mine); },
                                      [&] { return other.Create(theirs); });
  EXPECT_NE(first.ok(), second.ok()) << first << " " << second;
  ExpectCode(first.ok() ? second : first, absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(source_->Count(), 1);
}

// One wants to switch over and one to cancel: one outcome, and both are told
// the truth of it. Two that want the same both have it.
TEST_F(ControlPlaneTest, SwitchOverAndCancelRace) {
  for (int i = 0; i < 4; ++i) {
    SCOPED_TRACE(i);
    Begin();
    ASSERT_OK(
        hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY));
    ASSERT_OK(hosts_->AwaitSource(
        kVm, [](const v1::Migration& m) { return m.rounds() >= 1; }));
    Client other(hosts_->control_address());
    Client third(hosts_->control_address());
    absl::Status again;
    std::thread thread([&] { again = third.SwitchOver("third"); });
    const auto [switched, cancelled] =
        AtOnce([&] { return source_->SwitchOver("mine"); },
               [&] { return other.Cancel("theirs"); });
    thread.join();
    EXPECT_EQ(switched.ok(), again.ok()) << switched << " " << again;
    ASSERT_NE(switched.ok(), cancelled.ok()) << switched << " " << cancelled;
    if (switched.ok()) {
      ExpectCode(cancelled, absl::StatusCode::kFailedPrecondition);
      ExpectArrived();
    } else {
      ExpectCode(switched, absl::StatusCode::kAborted);
      EXPECT_EQ(hosts_->AtSource(kVm).state(), v1::MIGRATION_STATE_CANCELLED);
      ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
      EXPECT_EQ(hosts_->AtDestination(kVm).state(),
                v1::MIGRATION_STATE_CANCELLED);
      ExpectCorrect(hosts_->FinishSource());
    }
    hosts_.reset();
  }
}

// --- Many.

// Guests of 4 MiB that write a little, all between the same two daemons.
TEST_F(ControlPlaneTest, SixtyFourAtOnce) {
  constexpr int kVms = 64;
  auto created = TwoHosts::Create({});
  ASSERT_OK(created.status());
  hosts_ = *std::move(created);
  source_ = std::make_unique<Client>(hosts_->control_address());
  destination_ =
      std::make_unique<Client>(hosts_->destination_control_address());
  const auto attach = [this](int vm, VmmRole role) {
    auto ram = demovm::GuestRam::Create(ByteCount(4 << 20));
    EXPECT_TRUE(ram.ok()) << ram.status();
    auto machine = demovm::CreateProcessMachine(
        {.vcpus = 1, .write_rate_mib_per_s = 1}, *std::move(ram));
    EXPECT_TRUE(machine.ok()) << machine.status();
    const bool source = role == VmmRole::kSource;
    if (source) {
      EXPECT_TRUE((*machine)->Start().ok());
    }
    auto vmm = demovm::DemoVmm::Attach(
        *std::move(machine),
        {.name = absl::StrCat("vm-", vm),
         .socket_path =
             absl::StrCat(hosts_->directory(),
                          source ? "/source.sock" : "/destination.sock"),
         .role = role});
    EXPECT_TRUE(vmm.ok()) << vmm.status();
    return *std::move(vmm);
  };
  std::vector<std::unique_ptr<demovm::DemoVmm>> sources;
  std::vector<std::unique_ptr<demovm::DemoVmm>> destinations;
  for (int vm = 0; vm < kVms; ++vm) {
    sources.push_back(attach(vm, VmmRole::kSource));
    destinations.push_back(attach(vm, VmmRole::kDestination));
  }
  for (int vm = 0; vm < kVms; ++vm) {
    const std::string name = absl::StrCat("vm-", vm);
    v1::CreateMigrationRequest request = hosts_->SourceRequest(name);
    request.set_switch_over_mode(v1::SWITCH_OVER_MODE_AUTO);
    ASSERT_OK(source_->Create(request));
    ASSERT_OK(destination_->Create(hosts_->DestinationRequest(name)));
  }
  EXPECT_EQ(source_->Count(), kVms);
  for (int vm = 0; vm < kVms; ++vm) {
    SCOPED_TRACE(vm);
    const std::string name = absl::StrCat("vm-", vm);
    ASSERT_OK(hosts_->AwaitDestination(name, MigrationHasEnded));
    EXPECT_EQ(hosts_->AtDestination(name).state(),
              v1::MIGRATION_STATE_COMPLETED)
        << hosts_->AtDestination(name).ShortDebugString();
    ExpectCorrect(destinations[vm]->Finish());
  }
}

// --- Watching.

using Reader = std::unique_ptr<grpc::ClientReader<v1::WatchMigrationResponse>>;

v1::WatchMigrationRequest FastWatch() {
  v1::WatchMigrationRequest request;
  request.set_migration_id(kVm);
  request.set_progress_interval_ms(20);
  return request;
}

// A client that does not read keeps nobody: the migration goes its way, and
// what the client then reads has every change of state.
TEST_F(ControlPlaneTest, ASlowWatchHoldsUpNobodyAndMissesNothing) {
  Begin();
  Client slow(hosts_->destination_control_address());
  ASSERT_OK(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_POSTCOPY_ONLY, kSlowBulk));
  grpc::ClientContext context;
  const Reader reader = slow.stub().WatchMigration(&context, FastWatch());
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ASSERT_OK(hosts_->AwaitDestination(
      kVm, [](const v1::Migration& m) { return m.pages().background() > 0; }));
  // Shorter than any interval.
  ASSERT_OK(destination_->Pause("p1"));
  ASSERT_OK(destination_->Recover("r1"));
  ASSERT_OK(source_->SetLimit("l1", 0));
  ExpectArrived();
  std::set<uint64_t> numbers;
  std::vector<v1::MigrationState> states;
  v1::WatchMigrationResponse response;
  while (reader->Read(&response)) {
    for (const v1::StateChange& change : response.migration().state_changes()) {
      if (numbers.insert(change.number()).second) {
        states.push_back(change.state());
      }
    }
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(response.migration().state(), v1::MIGRATION_STATE_COMPLETED);
  EXPECT_EQ(*numbers.rbegin(), numbers.size()) << "a gap";
  EXPECT_EQ(states,
            (std::vector<v1::MigrationState>{
                v1::MIGRATION_STATE_PREPARING, v1::MIGRATION_STATE_PRECOPY,
                v1::MIGRATION_STATE_SWITCHING, v1::MIGRATION_STATE_POSTCOPY,
                v1::MIGRATION_STATE_PAUSED, v1::MIGRATION_STATE_RECOVERING,
                v1::MIGRATION_STATE_POSTCOPY, v1::MIGRATION_STATE_COMPLETED}));
}

// Watches whose clients have vanished end, and make room for as many as there
// may be; one more is told so. Other calls are answered throughout.
TEST_F(ControlPlaneTest, VanishedWatchesMakeRoom) {
  Begin();
  ASSERT_OK(source_->Create(hosts_->SourceRequest(kVm)));
  auto proxy = FaultProxy::Create(hosts_->control_address());
  ASSERT_OK(proxy.status());
  struct Watch {
    grpc::ClientContext context;
    Reader reader;
  };
  const auto open = [](Client& client, int count) {
    std::vector<std::unique_ptr<Watch>> watches;
    v1::WatchMigrationResponse response;
    for (int i = 0; i < count; ++i) {
      watches.push_back(std::make_unique<Watch>());
      Watch& watch = *watches.back();
      watch.reader = client.stub().WatchMigration(&watch.context, FastWatch());
      if (watch.reader->Read(&response)) continue;
      ADD_FAILURE() << i << ": " << watch.reader->Finish().error_message();
      break;
    }
    return watches;
  };
  {
    Client vanishing((*proxy)->address());
    const auto watches = open(vanishing, kWatchesMax);
    grpc::ClientContext context;
    const Reader past = source_->stub().WatchMigration(&context, FastWatch());
    v1::WatchMigrationResponse response;
    EXPECT_FALSE(past->Read(&response));
    EXPECT_EQ(past->Finish().error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(source_->Count(), 1);
    (*proxy)->SetRefuse(true);
    (*proxy)->Cut();
    for (const auto& watch : watches) {
      while (watch->reader->Read(&response)) {
      }
      EXPECT_FALSE(watch->reader->Finish().ok());
    }
  }
  // The daemon notices within its own time.
  const auto has_room = [this] {
    grpc::ClientContext context;
    const Reader reader = source_->stub().WatchMigration(&context, FastWatch());
    v1::WatchMigrationResponse response;
    const bool room = reader->Read(&response);
    context.TryCancel();
    reader->Finish();
    return room;
  };
  while (!has_room()) std::this_thread::yield();
}

}  // namespace
}  // namespace postcopy
