// Whole migrations: both daemons, real gRPC over loopback TCP, real
// userfaultfd, a guest that checks its memory as it runs and once more, all of
// it, at the end.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "cmd/faultd/fault_recorder.h"
#include "cmd/trace/trace_codec.h"
#include "dirtytrack/write_tracking.h"
#include "tests/two_hosts.h"
#include "uffd/bulk_share.h"

namespace postcopy {
namespace {

using ::testing::Combine;
using ::testing::Test;
using ::testing::Values;

constexpr char kVm[] = "guest";
// Slow enough that a phase lasts until the test has done what it wants in it.
constexpr uint64_t kSlowBulk = 4 << 20;

#define ASSERT_OK(expression)                        \
  do {                                               \
    const absl::Status& status_ = (expression);      \
    ASSERT_TRUE(status_.ok()) << status_.ToString(); \
  } while (false)

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TwoHosts::Done InState(v1::MigrationState state) {
  return [state](const v1::Migration& m) { return m.state() == state; };
}

class MigrationTest : public Test {
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
  }

  void ExpectCorrect(const absl::StatusOr<demovm::FinalReport>& report) {
    ASSERT_OK(report.status());
    EXPECT_EQ(report->progress.mismatches, 0u);
    ASSERT_TRUE(report->verdict.has_value());
    EXPECT_TRUE(report->verdict->ok()) << ToString(*report->verdict);
    EXPECT_GT(report->progress.steps, 0u);
  }

  // The guest is at the destination, with every byte right.
  void ExpectArrived() {
    ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
    EXPECT_EQ(hosts_->AtDestination(kVm).state(), v1::MIGRATION_STATE_COMPLETED)
        << hosts_->AtDestination(kVm).ShortDebugString();
    ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_COMPLETED)));
    // Nothing of the source is needed any more.
    hosts_->EndSourceDaemon();
    hosts_->KillSourceVmm();
    ExpectCorrect(hosts_->FinishDestination());
  }

  std::unique_ptr<TwoHosts> hosts_;
};

// What is here and not in sight is shown to the guest ahead of it or when it
// touches it, and an orchestrator sees which.
TEST_F(MigrationTest, PagesMappedAheadAndMinorFaultsAreTold) {
  for (const bool minor_faults : {true, false}) {
    Begin({.minor_faults = minor_faults});
    ASSERT_OK(
        hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY));
    ASSERT_OK(hosts_->AwaitSource(
        kVm, [](const v1::Migration& m) { return m.advice().recommended(); }));
    ASSERT_OK(hosts_->SwitchOver(kVm));
    ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
    const v1::Migration destination = hosts_->AtDestination(kVm);
    EXPECT_EQ(destination.minor_faults() + destination.mapped_ahead_pages() > 0,
              minor_faults)
        << destination.ShortDebugString();
    ExpectArrived();
  }
}

using DirtyTracking = demovm::DemoVmm::DirtyTracking;

class PolicyTest : public MigrationTest,
                   public ::testing::WithParamInterface<
                       std::tuple<v1::MigrationPolicy, DirtyTracking>> {
 protected:
  void SetUp() override {
    MigrationTest::SetUp();
    if (tracking_ != DirtyTracking::kPagemapScan) return;
    const absl::Status possible = WriteTracking::Create({}).status();
    if (!possible.ok()) GTEST_SKIP() << possible;
  }

  const v1::MigrationPolicy policy_ = std::get<0>(GetParam());
  const DirtyTracking tracking_ = std::get<1>(GetParam());
};

// Every page arrives once the policy has done its part, and none is wrong.
TEST_P(PolicyTest, RunningGuestArrivesWhole) {
  Begin({.dirty_tracking = tracking_});
  ASSERT_OK(hosts_->CreateBoth(kVm, policy_));
  ASSERT_OK(hosts_->AwaitSource(
      kVm, [](const v1::Migration& m) { return m.advice().recommended(); }));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  ASSERT_OK(hosts_->SwitchOver(kVm));
  // Asking again changes nothing.
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  const v1::Migration source = hosts_->AtSource(kVm);
  const v1::Migration destination = hosts_->AtDestination(kVm);
  EXPECT_EQ(source.dirty_tracking().kind(),
            tracking_ == DirtyTracking::kLog
                ? v1::DIRTY_TRACKING_KIND_DIRTY_LOG
                : v1::DIRTY_TRACKING_KIND_PAGEMAP_SCAN);
  EXPECT_NE(source.dirty_tracking().reason(), "");
  EXPECT_FALSE(destination.has_dirty_tracking());
  EXPECT_EQ(destination.pages().remaining(), 0u);
  if (policy_ == v1::MIGRATION_POLICY_POSTCOPY_ONLY) {
    EXPECT_EQ(source.pages().precopied(), 0u);
    EXPECT_EQ(source.pages().stale_at_switch_over(), source.pages().total());
    EXPECT_EQ(destination.pages().faulted() + destination.pages().background(),
              source.pages().total());
  } else {
    EXPECT_GE(source.pages().precopied(), source.pages().total());
    EXPECT_GT(source.rounds(), 0u);
  }
  if (policy_ == v1::MIGRATION_POLICY_PRECOPY_ONLY) {
    EXPECT_EQ(source.pages().stale_at_switch_over(), 0u);
    EXPECT_EQ(destination.pages().faulted(), 0u);
  }
  ExpectArrived();
}

INSTANTIATE_TEST_SUITE_P(
    Policies, PolicyTest,
    Combine(Values(v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                   v1::MIGRATION_POLICY_POSTCOPY_ONLY,
                   v1::MIGRATION_POLICY_PRECOPY_ONLY),
            Values(DirtyTracking::kLog, DirtyTracking::kPagemapScan)),
    [](const auto& info) {
      return v1::MigrationPolicy_Name(std::get<0>(info.param)) +
             (std::get<1>(info.param) == DirtyTracking::kLog ? "_LOG"
                                                             : "_PAGEMAP_SCAN");
    });

// Whatever comes first, every page comes, and none is wrong.
TEST_F(MigrationTest, EveryOrderBringsEveryPage) {
  for (int order = v1::PullOrder_MIN; order <= v1::PullOrder_MAX; ++order) {
    SCOPED_TRACE(order);
    Begin();
    v1::CreateMigrationRequest request = hosts_->SourceRequest(kVm);
    ASSERT_OK(hosts_->CreateAtSource(request).status());
    request = hosts_->DestinationRequest(kVm);
    request.set_pull_order(static_cast<v1::PullOrder>(order));
    ASSERT_OK(hosts_->CreateAtDestination(request).status());
    ASSERT_OK(hosts_->AwaitSource(
        kVm, [](const v1::Migration& m) { return m.rounds() >= 2; }));
    ASSERT_OK(hosts_->SwitchOver(kVm));
    EXPECT_EQ(hosts_->AtSource(kVm).pull_order(), v1::PULL_ORDER_UNSPECIFIED);
    EXPECT_EQ(hosts_->AtDestination(kVm).pull_order(),
              order == v1::PULL_ORDER_UNSPECIFIED
                  ? v1::PULL_ORDER_ADAPTIVE
                  : static_cast<v1::PullOrder>(order));
    ExpectArrived();
    hosts_.reset();
  }
}

// The destination daemon dies during precopy: the guest goes on at the source,
// and a later migration to another daemon finds every page.
TEST_F(MigrationTest, DestinationGoneDuringPrecopyHarmsNothing) {
  Begin({.reconnect_timeout = absl::Milliseconds(200)});
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                               kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(
      kVm, [](const v1::Migration& m) { return m.pages().precopied() > 100; }));
  hosts_->EndDestinationDaemon();
  hosts_->KillDestinationVmm();
  ASSERT_OK(hosts_->AwaitSource(kVm, MigrationHasEnded));
  const v1::Migration given_up = hosts_->AtSource(kVm);
  EXPECT_EQ(given_up.state(), v1::MIGRATION_STATE_CANCELLED);
  EXPECT_TRUE(
      Contains(given_up.status_message(), "the guest goes on at the source"))
      << given_up.status_message();

  ASSERT_OK(hosts_->StartDestinationDaemon());
  ASSERT_OK(hosts_->AttachDestination(kVm, ByteCount(32 << 20)));
  v1::CreateMigrationRequest source = hosts_->SourceRequest(kVm);
  source.set_request_id("again");
  source.set_migration_id("again");
  ASSERT_OK(hosts_->CreateAtSource(source).status());
  source.set_source_address(hosts_->network().address());
  ASSERT_OK(hosts_->CreateAtDestination(source).status());
  ASSERT_OK(hosts_->AwaitSource(
      "again", [](const v1::Migration& m) { return m.rounds() >= 2; }));
  ASSERT_OK(hosts_->SwitchOver("again"));
  ASSERT_OK(hosts_->AwaitDestination("again",
                                     InState(v1::MIGRATION_STATE_COMPLETED)));
  ExpectCorrect(hosts_->FinishDestination());
}

// A connection that breaks during precopy and comes back costs a round at most.
TEST_F(MigrationTest, CutDuringPrecopyRecovers) {
  Begin();
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                               kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(
      kVm, [](const v1::Migration& m) { return m.pages().precopied() > 100; }));
  hosts_->network().Cut();
  ASSERT_OK(hosts_->AwaitSource(
      kVm, [](const v1::Migration& m) { return m.recoveries() > 0; }));
  ASSERT_OK(hosts_->AwaitSource(
      kVm, [](const v1::Migration& m) { return m.rounds() >= 2; }));
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ExpectArrived();
}

// What a guest waited for is told by stage and thread, while it waits and when
// the migration has ended.
TEST_F(MigrationTest, TellsWhereTheTimeOfFaultsWent) {
  Begin();
  ASSERT_OK(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_POSTCOPY_ONLY, kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  EXPECT_EQ(hosts_->AtDestination(kVm).fault_times().stalled_us(), 0u);
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ASSERT_OK(hosts_->AwaitDestination(
      kVm, [](const v1::Migration& m) { return m.pages().faulted() > 0; }));
  const uint64_t stalled_us =
      hosts_->AtDestination(kVm).fault_times().stalled_us();
  EXPECT_GT(stalled_us, 0u);
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  EXPECT_FALSE(hosts_->AtSource(kVm).has_fault_times());
  const v1::Migration migration = hosts_->AtDestination(kVm);
  const v1::FaultTimes& times = migration.fault_times();
  EXPECT_GE(times.stalled_us(), stalled_us);
  ASSERT_EQ(times.stages_size(), 4);
  for (int i = 0; i < 4; ++i) {
    const v1::FaultStage& stage = times.stages(i);
    EXPECT_EQ(stage.kind(), i + 1);
    EXPECT_EQ(stage.count(), migration.fault_latency().count());
    EXPECT_LE(stage.p50_us(), stage.p90_us());
    EXPECT_LE(stage.p90_us(), stage.p99_us());
    EXPECT_LE(stage.p99_us(), stage.max_us());
    EXPECT_LE(stage.max_us(), stage.total_us());
  }
  EXPECT_GT(times.stages(2).total_us(), 0u);
  ASSERT_GT(times.threads_size(), 0);
  EXPECT_FALSE(times.has_other_threads());
  for (const v1::FaultingThread& thread : times.threads()) {
    EXPECT_GT(thread.thread_id(), 0u);
    EXPECT_GT(thread.faults(), 0u);
    EXPECT_LE(thread.wait_max_us(), thread.wait_us());
    EXPECT_LE(thread.wait_max_us(), times.stalled_us());
  }
  ExpectArrived();
}

// The trace of a migration has each of its faults, with the times that the
// daemon counts.
TEST_F(MigrationTest, RecordsItsFaults) {
  const std::string directory = ::testing::TempDir() + "/traces";
  std::filesystem::remove_all(directory);
  ASSERT_EQ(::mkdir(directory.c_str(), 0700), 0);
  auto recorder = FaultRecorder::Create({.directory = directory});
  ASSERT_OK(recorder.status());
  Begin({.recorder = recorder->get()});
  ASSERT_OK(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_POSTCOPY_ONLY, kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  const v1::Migration migration = hosts_->AtDestination(kVm);
  ExpectArrived();
  hosts_.reset();
  (*recorder)->Shutdown();
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    files.push_back(entry.path());
  }
  ASSERT_EQ(files.size(), 1u);
  EXPECT_TRUE(Contains(files[0], std::string("/") + kVm + "-"));
  const absl::StatusOr<Trace> trace = ReadTraceFile(files[0]);
  ASSERT_OK(trace.status());
  EXPECT_EQ(trace->pages.value(), migration.pages().total());
  EXPECT_EQ(trace->dropped, 0u);
  uint64_t with_times = 0;
  std::set<uint32_t> threads;
  for (const TraceEvent& event : trace->events) {
    threads.insert(event.thread);
    // Not each of them is there: a page that the bulk lane brings meanwhile is
    // answered when it is asked for.
    const std::array<uint64_t, 4>& stages = event.stages_ns;
    if (stages[1] + stages[2] + stages[3] > 0) ++with_times;
  }
  EXPECT_EQ(with_times, migration.fault_latency().count());
  EXPECT_EQ(threads.size(),
            static_cast<size_t>(migration.fault_times().threads_size()));
  EXPECT_EQ((*recorder)->totals().events.load(), trace->events.size());
  std::filesystem::remove_all(directory);
}

// A connection that breaks after the switch-over: the migration pauses, comes
// back by itself, and asks only for what is missing.
TEST_F(MigrationTest, CutDuringPostcopyPausesAndRecovers) {
  Begin();
  ASSERT_OK(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_POSTCOPY_ONLY, kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ASSERT_OK(hosts_->AwaitDestination(
      kVm, [](const v1::Migration& m) { return m.pages().background() > 0; }));
  hosts_->network().SetRefuse(true);
  hosts_->network().Cut();
  ASSERT_OK(hosts_->AwaitDestination(kVm, InState(v1::MIGRATION_STATE_PAUSED)));
  EXPECT_EQ(hosts_->CancelAtSource(kVm).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(hosts_->CancelAtDestination(kVm).code(),
            absl::StatusCode::kFailedPrecondition);
  hosts_->network().SetRefuse(false);
  ASSERT_OK(hosts_->AwaitDestination(
      kVm, [](const v1::Migration& m) { return m.recoveries() == 1; }));
  ExpectArrived();
}

// While other VMs have all bulk requests, faults are served and nothing else is
// asked for; its turn comes when one of them gives back.
TEST_F(MigrationTest, TakesTurnsWithOtherVms) {
  Begin();
  BulkShare& share = hosts_->bulk_share();
  BulkShare::Member others;
  std::vector<BulkShare::Permit> taken;
  for (size_t i = 0; i < kDefaultBulkRequests; ++i) {
    taken.push_back(*share.Acquire(&others));
  }
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_POSTCOPY_ONLY));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  ASSERT_OK(hosts_->SwitchOver(kVm));
  while (share.waiting() == 0) std::this_thread::yield();
  ASSERT_OK(hosts_->AwaitDestination(
      kVm, [](const v1::Migration& m) { return m.pages().faulted() > 0; }));
  EXPECT_EQ(hosts_->AtDestination(kVm).pages().background(), 0u);
  for (const BulkShare::Permit& permit : taken) share.Release(permit);
  ExpectArrived();
  EXPECT_EQ(share.in_flight(), 0u);
}

// Bits that flip on the wire are seen, counted and asked for again.
TEST_F(MigrationTest, DamagedBytesReachNoGuest) {
  Begin();
  hosts_->network().Damage(3);
  ASSERT_OK(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY));
  ASSERT_OK(hosts_->AwaitSource(kVm, [](const v1::Migration& m) {
    // A flip that hit the framing has broken the connection instead.
    return m.pages().damaged_runs() + m.recoveries() > 0 && m.rounds() >= 3;
  }));
  hosts_->network().Damage(3);
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ExpectArrived();
}

// Compressed, every page arrives as it was, damaged bytes or none.
TEST_F(MigrationTest, CompressedPagesArriveWhole) {
  for (const v1::MigrationPolicy policy :
       {v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
        v1::MIGRATION_POLICY_POSTCOPY_ONLY}) {
    for (const int flips : {0, 3}) {
      SCOPED_TRACE(v1::MigrationPolicy_Name(policy) +
                   ", flips: " + std::to_string(flips));
      Begin();
      if (flips != 0) hosts_->network().Damage(flips);
      v1::CreateMigrationRequest request = hosts_->SourceRequest(kVm);
      request.set_policy(policy);
      request.set_bulk_zstd(true);
      ASSERT_OK(hosts_->CreateAtSource(request).status());
      request = hosts_->DestinationRequest(kVm);
      request.set_policy(policy);
      ASSERT_OK(hosts_->CreateAtDestination(request).status());
      ASSERT_OK(hosts_->AwaitSource(kVm, [](const v1::Migration& m) {
        return m.advice().recommended() &&
               m.state() == v1::MIGRATION_STATE_PRECOPY;
      }));
      ASSERT_OK(hosts_->SwitchOver(kVm));
      ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
      const v1::Migration source = hosts_->AtSource(kVm);
      EXPECT_TRUE(source.bulk_zstd());
      EXPECT_GT(source.bulk_page_bytes(), 0u);
      EXPECT_LT(source.bulk_sent_bytes(), source.bulk_page_bytes())
          << source.ShortDebugString();
      EXPECT_EQ(hosts_->AtDestination(kVm).bulk_page_bytes(), 0u);
      ExpectArrived();
      hosts_.reset();
    }
  }
}

// Cancelled before the switch-over, the guest goes on as if nothing had been.
TEST_F(MigrationTest, CancelDuringPrecopy) {
  Begin();
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                               kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(
      kVm, [](const v1::Migration& m) { return m.pages().precopied() > 100; }));
  ASSERT_OK(hosts_->CancelAtSource(kVm));
  ASSERT_OK(hosts_->CancelAtSource(kVm));
  EXPECT_EQ(hosts_->AtSource(kVm).state(), v1::MIGRATION_STATE_CANCELLED);
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  EXPECT_EQ(hosts_->AtDestination(kVm).state(), v1::MIGRATION_STATE_CANCELLED);
  ExpectCorrect(hosts_->FinishSource());
}

TEST_F(MigrationTest, SourceVmmDiesDuringPrecopy) {
  Begin();
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                               kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  hosts_->KillSourceVmm();
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_FAILED)));
  EXPECT_TRUE(
      Contains(hosts_->AtSource(kVm).status_message(), "the VMM closed"));
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
}

TEST_F(MigrationTest, DestinationVmmDiesDuringPrecopy) {
  Begin({.reconnect_timeout = absl::Milliseconds(200)});
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                               kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  hosts_->KillDestinationVmm();
  ASSERT_OK(hosts_->AwaitDestination(kVm, InState(v1::MIGRATION_STATE_FAILED)));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_CANCELLED)));
  ExpectCorrect(hosts_->FinishSource());
}

// What a VM has left behind is memory and descriptors of this daemon, as long
// as its migration needs them: the limit is of these.
TEST_F(MigrationTest, AVmThatHasLeftItsMemoryStillCounts) {
  Begin({.ram = ByteCount(8 << 20), .vms_max = 1});
  ASSERT_OK(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_POSTCOPY_ONLY, kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ASSERT_OK(hosts_->AwaitDestination(
      kVm, [](const v1::Migration& m) { return m.pages().background() > 0; }));
  hosts_->KillSourceVmm();
  const absl::Status refused = hosts_->AttachSource("next");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_TRUE(Contains(std::string(refused.message()), "being let go"))
      << refused;
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_COMPLETED)));
  while (!hosts_->AttachSource("next").ok()) std::this_thread::yield();
  ExpectCorrect(hosts_->FinishDestination());
}

// --- Requests that make no sense.

void ExpectRefused(const absl::StatusOr<v1::Migration>& result,
                   absl::StatusCode code, const std::string& part) {
  EXPECT_EQ(result.status().code(), code) << result.status().ToString();
  EXPECT_TRUE(Contains(std::string(result.status().message()), part))
      << result.status().ToString();
}

TEST_F(MigrationTest, UnknownVm) {
  Begin();
  ExpectRefused(hosts_->CreateAtSource(hosts_->SourceRequest("nobody")),
                absl::StatusCode::kNotFound,
                "no VM \"nobody\" is attached to this source");
  ExpectRefused(hosts_->CreateAtDestination(hosts_->DestinationRequest("no")),
                absl::StatusCode::kNotFound,
                "no VM \"no\" is attached to this destination");
}

TEST_F(MigrationTest, WrongSide) {
  Begin();
  ExpectRefused(hosts_->CreateAtSource(hosts_->DestinationRequest(kVm)),
                absl::StatusCode::kInvalidArgument,
                "this daemon is the source");
  ExpectRefused(hosts_->CreateAtDestination(hosts_->SourceRequest(kVm)),
                absl::StatusCode::kInvalidArgument,
                "this daemon is the destination");
}

TEST_F(MigrationTest, SwitchOverBeforeThereIsADestination) {
  Begin();
  ASSERT_OK(hosts_->CreateAtSource(hosts_->SourceRequest(kVm)).status());
  const absl::Status status = hosts_->SwitchOver(kVm);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Contains(status.ToString(), "no destination has opened"));
}

TEST_F(MigrationTest, RequestsAreIdempotentAndVmsAreMigratedOnce) {
  Begin();
  v1::CreateMigrationRequest request = hosts_->SourceRequest(kVm);
  ASSERT_OK(hosts_->CreateAtSource(request).status());
  ASSERT_OK(hosts_->CreateAtSource(request).status());
  request.set_rounds_max(7);
  ExpectRefused(hosts_->CreateAtSource(request),
                absl::StatusCode::kAlreadyExists, "different request");
  request.set_request_id("other");
  ExpectRefused(hosts_->CreateAtSource(request),
                absl::StatusCode::kAlreadyExists,
                "choose another migration_id");
  request.set_migration_id("other");
  ExpectRefused(hosts_->CreateAtSource(request),
                absl::StatusCode::kAlreadyExists, "is being migrated already");
}

TEST_F(MigrationTest, LimitsOfARequest) {
  Begin();
  v1::CreateMigrationRequest request = hosts_->SourceRequest(kVm);
  request.set_bulk_limit_bytes_per_second((1 << 20) - 1);
  ExpectRefused(hosts_->CreateAtSource(request),
                absl::StatusCode::kInvalidArgument, "at least 1048576");
  request.set_bulk_limit_bytes_per_second(1 << 20);
  request.set_rounds_max(1001);
  ExpectRefused(hosts_->CreateAtSource(request),
                absl::StatusCode::kInvalidArgument, "at most 1000");
  request.set_rounds_max(1000);
  request.set_pull_order(static_cast<v1::PullOrder>(v1::PullOrder_MAX + 1));
  ExpectRefused(hosts_->CreateAtSource(request),
                absl::StatusCode::kInvalidArgument, "pull_order");
  request.set_pull_order(v1::PullOrder_MAX);
  request.set_migration_id("has space");
  ExpectRefused(hosts_->CreateAtSource(request),
                absl::StatusCode::kInvalidArgument, "migration_id must be");
  request.set_migration_id(std::string(129, 'x'));
  ExpectRefused(hosts_->CreateAtSource(request),
                absl::StatusCode::kInvalidArgument, "migration_id must be");
  request.set_migration_id(std::string(128, 'x'));
  ASSERT_OK(hosts_->CreateAtSource(request).status());
}

// A destination of another size is told so, and the guest goes on.
TEST_F(MigrationTest, LayoutsThatDiffer) {
  auto hosts = TwoHosts::Create({});
  ASSERT_OK(hosts.status());
  hosts_ = *std::move(hosts);
  ASSERT_OK(hosts_->AttachSource(kVm));
  ASSERT_OK(hosts_->AttachDestination(kVm, ByteCount(64 << 20)));
  ASSERT_OK(
      hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY));
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  EXPECT_EQ(hosts_->AtDestination(kVm).state(), v1::MIGRATION_STATE_CANCELLED);
  EXPECT_TRUE(Contains(hosts_->AtDestination(kVm).status_message(),
                       "32MiB at the source and 64MiB at the destination"))
      << hosts_->AtDestination(kVm).status_message();
  ASSERT_OK(hosts_->CancelAtSource(kVm));
  ExpectCorrect(hosts_->FinishSource());
}

// What a guest left behind must not be migrated as if it were the guest.
TEST_F(MigrationTest, HandedOverVmIsNotMigratedAgain) {
  Begin();
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_POSTCOPY_ONLY));
  ASSERT_OK(hosts_->AwaitSource(kVm, InState(v1::MIGRATION_STATE_PRECOPY)));
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ASSERT_OK(hosts_->AwaitSource(kVm, MigrationHasEnded));
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  v1::CreateMigrationRequest request = hosts_->SourceRequest(kVm);
  request.set_request_id("again");
  request.set_migration_id("again");
  ExpectRefused(hosts_->CreateAtSource(request),
                absl::StatusCode::kFailedPrecondition, "has been handed over");
  request.set_source_address(hosts_->network().address());
  ExpectRefused(hosts_->CreateAtDestination(request),
                absl::StatusCode::kFailedPrecondition, "attach a fresh one");
}

TEST(DaemonTest, PortTaken) {
  auto hosts = TwoHosts::Create({});
  ASSERT_OK(hosts.status());
  const auto second = SourceDaemon::Create(
      {.control_address = (*hosts)->control_address(),
       .data_address = "127.0.0.1:0",
       .security = {.insecure_control = true, .insecure_data = true},
       .vmm_socket = (*hosts)->directory() + "/second.sock"});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Contains(second.status().ToString(), "is the port taken"))
      << second.status().ToString();
}

}  // namespace
}  // namespace postcopy
