#include "cmd/control/migration_table.h"

#include <gtest/gtest.h>

#include <functional>
#include <latch>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dirtytrack/trace_id.h"

namespace postcopy {
namespace {

class FakeSide final : public MigrationSide {
 public:
  void Describe(v1::Migration& migration) const override {
    migration.set_state(has_ended ? v1::MIGRATION_STATE_COMPLETED : state);
    migration.add_state_changes();
  }
  SideTotals Totals() const override {
    SideTotals totals;
    totals.state =
        has_ended ? v1::MIGRATION_STATE_COMPLETED : v1::MIGRATION_STATE_PRECOPY;
    totals.vm[VmCounter::kPrecopiedPages] = precopied;
    return totals;
  }
  bool ended() const override { return has_ended; }
  absl::Status SwitchOver() override { return absl::OkStatus(); }
  absl::Status Cancel() override {
    if (on_cancel) on_cancel();
    ++cancel_count;
    return absl::OkStatus();
  }
  bool ShowsLife() override {
    ++ask_count;
    return alive;
  }
  absl::Status Pause() override { return absl::OkStatus(); }
  absl::Status Recover(const std::string& /*address*/) override {
    return absl::OkStatus();
  }
  absl::Status SetBulkLimit(uint64_t /*limit*/) override {
    return absl::OkStatus();
  }
  absl::Status Abandon() override { return absl::OkStatus(); }
  absl::Status MayDelete() const override {
    return has_ended ? absl::OkStatus()
                     : absl::FailedPreconditionError("under way");
  }
  void VmmGone() override { ++gone_count; }
  void Stop() override {
    if (on_stop) on_stop();
    ++stop_count;
  }
  uint64_t version() const override { return 0; }
  void WaitForChange(uint64_t /*seen*/, int64_t /*nanos*/) const override {}

  v1::MigrationState state = v1::MIGRATION_STATE_PRECOPY;
  bool has_ended = false;
  uint64_t precopied = 0;
  bool alive = true;
  std::function<void()> on_cancel;
  std::function<void()> on_stop;
  int ask_count = 0;
  int cancel_count = 0;
  int gone_count = 0;
  int stop_count = 0;
};

class MigrationTableTest : public ::testing::Test {
 protected:
  static constexpr size_t kMax = 4;

  static v1::CreateMigrationRequest Request(const std::string& id,
                                            const std::string& vm) {
    v1::CreateMigrationRequest request;
    request.set_request_id(absl::StrCat("request-", id));
    request.set_migration_id(id);
    request.set_vm_name(vm);
    return request;
  }
  // A migration of a VM of its own.
  absl::StatusOr<v1::Migration> Create(const std::string& id) {
    return table_.Create(Request(id, absl::StrCat("vm-", id)));
  }

  std::map<std::string, std::shared_ptr<FakeSide>> sides_;
  std::vector<std::string> forgotten_;
  absl::Status refusal_;
  std::function<void()> on_validate_;
  MigrationTable table_{
      [this](const v1::CreateMigrationRequest& request)
          -> absl::StatusOr<std::shared_ptr<MigrationSide>> {
        if (!refusal_.ok()) return refusal_;
        return sides_[request.migration_id()] = std::make_shared<FakeSide>();
      },
      [this](
          const v1::CreateMigrationRequest&) -> absl::StatusOr<v1::Migration> {
        if (on_validate_) on_validate_();
        if (!refusal_.ok()) return refusal_;
        v1::Migration migration;
        migration.set_role(v1::ROLE_SOURCE);
        return migration;
      },
      [this](const std::string& id) { forgotten_.push_back(id); }, kMax};
};

TEST_F(MigrationTableTest, CreatesFindsAndLists) {
  const auto created = Create("a");
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_EQ(created->migration_id(), "a");
  EXPECT_EQ(created->vm_name(), "vm-a");
  EXPECT_EQ(created->policy(), v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY);
  EXPECT_GT(created->create_time().seconds(), 0);
  ASSERT_TRUE(Create("b").ok());
  ASSERT_EQ(table_.List().size(), 2u);
  EXPECT_EQ(table_.List()[0].migration_id(), "a");
  EXPECT_TRUE(table_.Find("a").ok());
  EXPECT_EQ(table_.Find("x").status().message(),
            "no migration \"x\" on this daemon");
  EXPECT_EQ(table_.Describe("x").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(MigrationTableTest, KnowsHowManyGuestsNeedTheDaemon) {
  EXPECT_EQ(table_.load().running, 0u);
  for (const char* id : {"a", "b", "c"}) ASSERT_TRUE(Create(id).ok());
  sides_["a"]->has_ended = true;
  EXPECT_EQ(table_.load().running, 2u);
  EXPECT_EQ(table_.load().needing, 0u) << "in precopy the guest is elsewhere";
  for (const auto state :
       {v1::MIGRATION_STATE_SWITCHING, v1::MIGRATION_STATE_POSTCOPY,
        v1::MIGRATION_STATE_PAUSED, v1::MIGRATION_STATE_RECOVERING}) {
    sides_["b"]->state = state;
    EXPECT_EQ(table_.load().needing, 1u) << state;
  }
}

TEST_F(MigrationTableTest, AfterStopTakingNothingBegins) {
  ASSERT_TRUE(Create("a").ok());
  ASSERT_TRUE(Create("b").ok());
  sides_["b"]->has_ended = true;
  table_.StopTaking("this daemon is ending");
  EXPECT_EQ(sides_["a"]->cancel_count, 1);
  EXPECT_EQ(sides_["b"]->cancel_count, 0);
  const auto refused = Create("c");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(refused.status().message(), "this daemon is ending");
  v1::CreateMigrationRequest look = Request("d", "vm-d");
  look.set_validate_only(true);
  EXPECT_EQ(table_.Create(look).status(), refused.status());
  EXPECT_TRUE(Create("a").ok()) << "the same request again is answered";
}

TEST_F(MigrationTableTest, ACancellationThatHasToWaitKeepsNoOtherWaiting) {
  ASSERT_TRUE(Create("a").ok());
  ASSERT_TRUE(Create("b").ok());
  std::latch both(2);
  for (const char* id : {"a", "b"}) {
    sides_[id]->on_cancel = [&] { both.arrive_and_wait(); };
  }
  table_.StopTaking("this daemon is ending");
  EXPECT_EQ(sides_["a"]->cancel_count, 1);
  EXPECT_EQ(sides_["b"]->cancel_count, 1);
}

TEST_F(MigrationTableTest, AStopThatHasToWaitKeepsNoOtherWaiting) {
  ASSERT_TRUE(Create("a").ok());
  ASSERT_TRUE(Create("b").ok());
  std::latch both(2);
  for (const char* id : {"a", "b"}) {
    sides_[id]->on_stop = [&] { both.arrive_and_wait(); };
  }
  table_.StopAll();
}

TEST_F(MigrationTableTest, OneThatIsStuckIsEnoughAndAllAreAsked) {
  EXPECT_TRUE(table_.AllShowLife());
  for (const char* id : {"a", "b", "c"}) ASSERT_TRUE(Create(id).ok());
  EXPECT_TRUE(table_.AllShowLife());
  sides_["b"]->alive = false;
  EXPECT_FALSE(table_.AllShowLife());
  EXPECT_EQ(sides_["c"]->ask_count, 2);
}

// What could not be created is not there, and its id is free.
TEST_F(MigrationTableTest, RefusalLeavesNothing) {
  refusal_ = absl::NotFoundError("no such VM");
  EXPECT_EQ(Create("a").status(), refusal_);
  EXPECT_TRUE(table_.List().empty());
  refusal_ = absl::OkStatus();
  EXPECT_TRUE(Create("a").ok());
}

TEST_F(MigrationTableTest, SameRequestIsCreatedOnce) {
  ASSERT_TRUE(Create("a").ok());
  const FakeSide* side = sides_["a"].get();
  ASSERT_TRUE(Create("a").ok());
  EXPECT_EQ(sides_["a"].get(), side);
}

// At the limit the oldest that has ended makes room; if none has, nobody does.
TEST_F(MigrationTableTest, LimitAndOnePast) {
  for (size_t i = 0; i < kMax; ++i) {
    ASSERT_TRUE(Create(absl::StrCat(i)).ok());
  }
  const auto past = Create("past");
  EXPECT_EQ(past.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(past.status().message(),
            "this daemon has 4 migrations under way, which is its limit: wait "
            "until one has ended");
  EXPECT_TRUE(forgotten_.empty());

  sides_["1"]->has_ended = true;
  sides_["2"]->has_ended = true;
  ASSERT_TRUE(Create("past").ok());
  EXPECT_EQ(forgotten_, std::vector<std::string>{"1"});
  EXPECT_FALSE(table_.Find("1").ok());
  EXPECT_TRUE(table_.Find("2").ok());
  EXPECT_EQ(sides_["1"].use_count(), 1) << "still held";
}

// Prometheus takes a counter that went back for a daemon that was restarted.
TEST_F(MigrationTableTest, CountersDoNotGoBackWhenAMigrationIsForgotten) {
  for (size_t i = 0; i < kMax; ++i) {
    ASSERT_TRUE(Create(absl::StrCat(i)).ok());
    sides_[absl::StrCat(i)]->precopied = 100;
    sides_[absl::StrCat(i)]->has_ended = true;
  }
  const MigrationTotals before = table_.Totals();
  EXPECT_EQ(before.vm[VmCounter::kPrecopiedPages], 400u);
  EXPECT_EQ(before.present[v1::MIGRATION_STATE_COMPLETED], 4u);
  EXPECT_EQ(before.ended[v1::MIGRATION_STATE_COMPLETED], 4u);

  ASSERT_TRUE(Create("past").ok());
  ASSERT_EQ(forgotten_.size(), 1u);
  const MigrationTotals after = table_.Totals();
  EXPECT_EQ(after.vm[VmCounter::kPrecopiedPages], 400u);
  EXPECT_EQ(after.ended[v1::MIGRATION_STATE_COMPLETED], 4u);
  EXPECT_EQ(after.present[v1::MIGRATION_STATE_COMPLETED], 3u);
  EXPECT_EQ(after.present[v1::MIGRATION_STATE_PRECOPY], 1u);
}

TEST_F(MigrationTableTest, RefusalsAreCountedBesideRequests) {
  ASSERT_TRUE(Create("a").ok());
  ASSERT_TRUE(Create("a").ok()) << "the same again";
  refusal_ = absl::NotFoundError("no such VM");
  EXPECT_FALSE(Create("b").ok());
  EXPECT_FALSE(table_.Create({}).ok()) << "no request";
  EXPECT_EQ(table_.Totals().create_requests, 4u);
  EXPECT_EQ(table_.Totals().create_refusals, 2u);
}

TEST_F(MigrationTableTest, TraceIdsAreTheRequestsOrMadeHere) {
  v1::CreateMigrationRequest request = Request("a", "vm-a");
  request.set_trace_id("4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(table_.Create(request)->trace_id(), request.trace_id());
  const auto made = Create("b");
  ASSERT_TRUE(made.ok());
  EXPECT_TRUE(IsTraceId(made->trace_id())) << made->trace_id();
  EXPECT_EQ(Create("b")->trace_id(), made->trace_id()) << "idempotent";
  request = Request("c", "vm-c");
  request.set_trace_id("4BF92F3577B34DA6A3CE929D0E0E4736");
  EXPECT_EQ(table_.Create(request).status().message(),
            "trace_id must be empty or 32 digits of 0-9a-f, not all of them 0");
}

// A VM whose migration has ended may be migrated again; one under way not.
TEST_F(MigrationTableTest, OneMigrationOfAVmAtATime) {
  ASSERT_TRUE(table_.Create(Request("a", "vm")).ok());
  EXPECT_EQ(table_.Create(Request("b", "vm")).status().code(),
            absl::StatusCode::kAlreadyExists);
  sides_["a"]->has_ended = true;
  EXPECT_TRUE(table_.Create(Request("b", "vm")).ok());
}

TEST_F(MigrationTableTest, VmmGoneReachesItsOwnMigration) {
  ASSERT_TRUE(Create("a").ok());
  ASSERT_TRUE(Create("b").ok());
  table_.VmmGone("vm-a");
  EXPECT_EQ(sides_["a"]->gone_count, 1);
  EXPECT_EQ(sides_["b"]->gone_count, 0);
  table_.StopAll();
  EXPECT_EQ(sides_["b"]->stop_count, 1);
}

TEST_F(MigrationTableTest, UnknownPullOrder) {
  v1::CreateMigrationRequest request = Request("a", "vm");
  // As a newer client may send.
  // NOLINTNEXTLINE(clang-analyzer-optin.core.EnumCastOutOfRange)
  request.set_pull_order(static_cast<v1::PullOrder>(v1::PullOrder_MAX + 1));
  EXPECT_EQ(table_.Create(request).status().message(),
            "pull_order 6 is unknown");
  request.set_pull_order(v1::PullOrder_MAX);
  EXPECT_TRUE(table_.Create(request).ok());
}

// All is checked, nothing is created, and the id may be used.
TEST_F(MigrationTableTest, DryRun) {
  v1::CreateMigrationRequest request = Request("a", "vm");
  request.set_validate_only(true);
  const auto looked = table_.Create(request);
  ASSERT_TRUE(looked.ok()) << looked.status();
  EXPECT_EQ(looked->migration_id(), "a");
  EXPECT_EQ(looked->role(), v1::ROLE_SOURCE);
  EXPECT_EQ(looked->state(), v1::MIGRATION_STATE_UNSPECIFIED);
  EXPECT_FALSE(looked->has_create_time());
  EXPECT_TRUE(table_.List().empty());
  EXPECT_TRUE(sides_.empty());
  refusal_ = absl::NotFoundError("no such VM");
  EXPECT_EQ(table_.Create(request).status(), refusal_);
  refusal_ = absl::OkStatus();
  request.set_rounds_max(kRoundsLimitMax + 1);
  EXPECT_EQ(table_.Create(request).status().code(),
            absl::StatusCode::kInvalidArgument);
  request.set_rounds_max(0);
  ASSERT_TRUE(table_.Create(Request("a", "vm")).ok());
  EXPECT_EQ(table_.Create(request).status().code(),
            absl::StatusCode::kAlreadyExists);
}

// It starts to track what the guest writes: nobody else may meanwhile.
TEST_F(MigrationTableTest, ADryRunKeepsItsVmFromOthers) {
  v1::CreateMigrationRequest request = Request("a", "vm");
  request.set_validate_only(true);
  on_validate_ = [this] {
    EXPECT_EQ(table_.Create(Request("b", "vm")).status().code(),
              absl::StatusCode::kUnavailable);
    EXPECT_TRUE(table_.Create(Request("c", "other")).ok());
  };
  EXPECT_TRUE(table_.Create(request).ok());
  EXPECT_TRUE(table_.Create(Request("b", "vm")).ok());
}

// There must be room, but none is made.
TEST_F(MigrationTableTest, ADryRunAtTheLimit) {
  for (size_t i = 0; i < kMax; ++i) {
    ASSERT_TRUE(Create(absl::StrCat(i)).ok());
  }
  v1::CreateMigrationRequest request = Request("a", "vm");
  request.set_validate_only(true);
  EXPECT_EQ(table_.Create(request).status().code(),
            absl::StatusCode::kResourceExhausted);
  sides_["1"]->has_ended = true;
  EXPECT_TRUE(table_.Create(request).ok());
  EXPECT_TRUE(forgotten_.empty());
}

// Only what has ended is forgotten, and with it its id.
TEST_F(MigrationTableTest, Deletes) {
  ASSERT_TRUE(Create("a").ok());
  ASSERT_TRUE(Create("b").ok());
  EXPECT_EQ(table_.Delete("x").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(table_.Delete("a").message(), "under way");
  EXPECT_TRUE(table_.Find("a").ok());
  sides_["a"]->has_ended = true;
  EXPECT_TRUE(table_.Delete("a").ok());
  EXPECT_EQ(forgotten_, std::vector<std::string>{"a"});
  EXPECT_EQ(sides_["a"].use_count(), 1) << "still held";
  EXPECT_EQ(table_.Delete("a").code(), absl::StatusCode::kNotFound);
  ASSERT_EQ(table_.List().size(), 1u);
  EXPECT_EQ(table_.List()[0].migration_id(), "b");
}

// 256 histories would not fit into one answer.
TEST_F(MigrationTableTest, ListsWithoutHistory) {
  ASSERT_TRUE(Create("a").ok());
  EXPECT_EQ(table_.Describe("a")->state_changes_size(), 1);
  EXPECT_EQ(table_.List()[0].state_changes_size(), 0);
}

TEST_F(MigrationTableTest, LimitsOfWhatIsNew) {
  v1::CreateMigrationRequest request = Request("a", "vm");
  request.set_deadline_ms_per_gib(kDeadlineMsPerGibMax + 1);
  EXPECT_EQ(table_.Create(request).status().message(),
            "deadline_ms_per_gib must be at most 3600000, not 3600001");
  request.set_deadline_ms_per_gib(kDeadlineMsPerGibMax);
  request.set_source_address(std::string(kAddressBytesMax + 1, 'x'));
  EXPECT_EQ(table_.Create(request).status().message(),
            "source_address must have at most 512 bytes, not 513");
  request.set_source_address("unix:/run/source.sock");
  EXPECT_EQ(table_.Create(request).status().code(),
            absl::StatusCode::kInvalidArgument);
  request.set_source_address(std::string(kAddressBytesMax, 'x'));
  // What a newer orchestrator may send. NOLINTNEXTLINE(*EnumCastOutOfRange)
  request.set_switch_over_mode(static_cast<v1::SwitchOverMode>(99));
  EXPECT_EQ(table_.Create(request).status().message(),
            "switch_over_mode 99 is unknown");
  request.set_switch_over_mode(v1::SwitchOverMode_MAX);
  EXPECT_TRUE(table_.Create(request).ok());
}

TEST_F(MigrationTableTest, UnknownPolicy) {
  v1::CreateMigrationRequest request = Request("a", "vm");
  // What a newer orchestrator may send. NOLINTNEXTLINE(*EnumCastOutOfRange)
  request.set_policy(static_cast<v1::MigrationPolicy>(99));
  EXPECT_EQ(table_.Create(request).status().message(), "policy 99 is unknown");
}

}  // namespace
}  // namespace postcopy
