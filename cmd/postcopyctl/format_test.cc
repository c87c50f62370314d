// The small formats: names, units, JSON values.

#include <cstdint>
#include <string>
#include <vector>

#include "cmd/postcopyctl/exit_code.h"
#include "cmd/postcopyctl/json_writer.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/postcopyctl/units.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

TEST(UnitsTest, Counts) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
}

TEST(UnitsTest, Bytes) {
  EXPECT_EQ(FormatBytes(ByteCount(1023)), "1023 B");
  EXPECT_EQ(FormatBytes(ByteCount(1024)), "1.0 KiB");
  EXPECT_EQ(FormatBytes(ByteCount(3 << 19)), "1.5 MiB");
  EXPECT_EQ(FormatBytes(ByteCount(UINT64_MAX)), "16777216.0 TiB");
  EXPECT_EQ(FormatRate(1 << 30), "1.0 GiB/s");
}

TEST(UnitsTest, Micros) {
  EXPECT_EQ(FormatMicros(9999), "9,999 us");
  EXPECT_EQ(FormatMicros(10000), "10.0 ms");
  EXPECT_EQ(FormatMicros(10'000'000), "10.0 s");
}

TEST(NamesTest, PoliciesReadBack) {
  for (auto policy : {v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                      v1::MIGRATION_POLICY_POSTCOPY_ONLY,
                      v1::MIGRATION_POLICY_PRECOPY_ONLY}) {
    v1::MigrationPolicy read = v1::MIGRATION_POLICY_UNSPECIFIED;
    EXPECT_TRUE(ParsePolicy(PolicyName(policy), &read));
    EXPECT_EQ(read, policy);
  }
  for (int value = v1::PullOrder_MIN + 1; value <= v1::PullOrder_MAX; ++value) {
    const auto order = static_cast<v1::PullOrder>(value);
    v1::PullOrder read = v1::PULL_ORDER_UNSPECIFIED;
    EXPECT_TRUE(ParsePullOrder(PullOrderName(order), &read));
    EXPECT_EQ(read, order);
  }
  v1::PullOrder no_order = v1::PULL_ORDER_UNSPECIFIED;
  EXPECT_FALSE(ParsePullOrder("random", &no_order));
  EXPECT_FALSE(ParsePullOrder("", &no_order));
  EXPECT_EQ(no_order, v1::PULL_ORDER_UNSPECIFIED);
  EXPECT_EQ(PullOrderName(static_cast<v1::PullOrder>(99)), "order 99");

  v1::MigrationPolicy untouched = v1::MIGRATION_POLICY_UNSPECIFIED;
  EXPECT_FALSE(ParsePolicy("postcopy", &untouched));
  EXPECT_FALSE(ParsePolicy("", &untouched));
}

TEST(NamesTest, AStateFromTheFutureHasANameToo) {
  EXPECT_EQ(StateName(v1::MIGRATION_STATE_POSTCOPY), "POSTCOPY");
  // NOLINTNEXTLINE(*EnumCastOutOfRange): a newer daemon may well send it.
  EXPECT_EQ(StateName(static_cast<v1::MigrationState>(17)), "state 17");
}

TEST(NamesTest, FaultStages) {
  EXPECT_EQ(FaultStageName(v1::FAULT_STAGE_KIND_READING), "reading");
  EXPECT_EQ(FaultStageName(v1::FAULT_STAGE_KIND_ASKING), "asking");
  EXPECT_EQ(FaultStageName(v1::FAULT_STAGE_KIND_ANSWERING), "answering");
  EXPECT_EQ(FaultStageName(v1::FAULT_STAGE_KIND_INSTALLING), "installing");
  EXPECT_EQ(FaultStageName(v1::FAULT_STAGE_KIND_UNSPECIFIED), "");
  // NOLINTNEXTLINE(*EnumCastOutOfRange): a newer daemon may well send it.
  EXPECT_EQ(FaultStageName(static_cast<v1::FaultStageKind>(17)), "");
}

TEST(NamesTest, Ids) {
  EXPECT_TRUE(IsValidId("vm-1.a_B"));
  EXPECT_TRUE(IsValidId(std::string(128, 'a')));
  EXPECT_FALSE(IsValidId(std::string(129, 'a')));
  EXPECT_FALSE(IsValidId(""));
  EXPECT_FALSE(IsValidId("a b"));
  EXPECT_FALSE(IsValidId("a/b"));
}

TEST(NamesTest, RandomIdsAreValidAndDiffer) {
  std::string longest(128, 'a');
  EXPECT_TRUE(IsValidId(RandomId(longest)));
  EXPECT_EQ(RandomId("vm").size(), 11u);
  EXPECT_NE(RandomId("vm"), RandomId("vm"));
}

TEST(JsonTest, EscapesStrings) {
  EXPECT_EQ(JsonString("a\"b\\c\n\x01"), R"("a\"b\\c\u000a\u0001")");
  EXPECT_EQ(JsonString("\xc3\xa4"), "\"\xc3\xa4\"");
}

TEST(JsonTest, ListsObjects) {
  JsonObject one, two, json;
  one.Add("a", uint32_t{1});
  two.Add("b", "c");
  json.Add("none", std::vector<JsonObject>())
      .Add("both", std::vector<JsonObject>{one, two});
  EXPECT_EQ(json.ToString(), R"({"none":[],"both":[{"a":1},{"b":"c"}]})");
}

TEST(JsonTest, KeepsTypesAndOrder) {
  JsonObject inner;
  inner.Add("z", true).Add("a", uint32_t{1});
  JsonObject json;
  json.Add("text", "literal")
      .Add("big", UINT64_MAX)
      .Add("list", std::vector<uint64_t>{1, 2})
      .Add("inner", inner);
  EXPECT_EQ(json.ToString(), R"({"text":"literal","big":18446744073709551615,)"
                             R"("list":[1,2],"inner":{"z":true,"a":1}})");
  EXPECT_EQ(JsonObject().ToString(), "{}");
}

TEST(ExitCodeTest, FollowsTheStatus) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), ExitCode::kOk);
  EXPECT_EQ(ExitCodeOf(absl::AbortedError("")), ExitCode::kFailed);
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("")), ExitCode::kFailed);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("")), ExitCode::kUnreachable);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("")), ExitCode::kPrecondition);
  EXPECT_EQ(ExitCodeOf(absl::DeadlineExceededError("")),
            ExitCode::kPrecondition);
}

}  // namespace
}  // namespace postcopy
