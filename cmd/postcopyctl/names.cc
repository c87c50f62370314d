#include "cmd/postcopyctl/names.h"

#include <algorithm>
#include <cstdint>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace postcopy {
namespace {

constexpr size_t kSuffixBytes = 9;  // A hyphen and eight digits.

bool IsIdByte(char c) {
  return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
}

}  // namespace

std::string StateName(v1::MigrationState state) {
  if (!v1::MigrationState_IsValid(state)) return absl::StrCat("state ", state);
  return std::string(
      absl::StripPrefix(v1::MigrationState_Name(state), "MIGRATION_STATE_"));
}

std::string PolicyName(v1::MigrationPolicy policy) {
  switch (policy) {
    case v1::MIGRATION_POLICY_UNSPECIFIED:
    case v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY:
      return "precopy-then-postcopy";
    case v1::MIGRATION_POLICY_POSTCOPY_ONLY:
      return "postcopy-only";
    case v1::MIGRATION_POLICY_PRECOPY_ONLY:
      return "precopy-only";
    default:
      return absl::StrCat("policy ", policy);
  }
}

std::string PullOrderName(v1::PullOrder order) {
  switch (order) {
    case v1::PULL_ORDER_UNSPECIFIED:
      return "";
    case v1::PULL_ORDER_ADAPTIVE:
      return "adaptive";
    case v1::PULL_ORDER_LINEAR:
      return "linear";
    case v1::PULL_ORDER_AFTER_FAULT:
      return "after-fault";
    case v1::PULL_ORDER_AROUND_FAULTS:
      return "around-faults";
    case v1::PULL_ORDER_RECENTLY_DIRTIED:
      return "recently-dirtied";
    default:
      return absl::StrCat("order ", order);
  }
}

std::string DirtyTrackingName(v1::DirtyTrackingKind kind) {
  switch (kind) {
    case v1::DIRTY_TRACKING_KIND_UNSPECIFIED:
      return "unknown";
    case v1::DIRTY_TRACKING_KIND_DIRTY_LOG:
      return "dirty-log";
    case v1::DIRTY_TRACKING_KIND_PAGEMAP_SCAN:
      return "pagemap-scan";
    default:
      return absl::StrCat("kind ", kind);
  }
}

std::string FaultStageName(v1::FaultStageKind kind) {
  switch (kind) {
    case v1::FAULT_STAGE_KIND_READING:
      return "reading";
    case v1::FAULT_STAGE_KIND_ASKING:
      return "asking";
    case v1::FAULT_STAGE_KIND_ANSWERING:
      return "answering";
    case v1::FAULT_STAGE_KIND_INSTALLING:
      return "installing";
    default:
      return "";
  }
}

std::string ModeName(v1::SwitchOverMode mode) {
  switch (mode) {
    case v1::SWITCH_OVER_MODE_UNSPECIFIED:
      return "";
    case v1::SWITCH_OVER_MODE_MANUAL:
      return "manual";
    case v1::SWITCH_OVER_MODE_AUTO:
      return "auto";
    default:
      return absl::StrCat("mode ", mode);
  }
}

std::string VerdictName(v1::SwitchOverVerdict verdict) {
  switch (verdict) {
    case v1::SWITCH_OVER_VERDICT_UNSPECIFIED:
      return "";
    case v1::SWITCH_OVER_VERDICT_WAIT:
      return "wait";
    case v1::SWITCH_OVER_VERDICT_CONVERGED:
      return "converged";
    case v1::SWITCH_OVER_VERDICT_NOT_CONVERGING:
      return "not-converging";
    case v1::SWITCH_OVER_VERDICT_ROUNDS_USED_UP:
      return "rounds-used-up";
    case v1::SWITCH_OVER_VERDICT_DEADLINE:
      return "deadline";
    case v1::SWITCH_OVER_VERDICT_POLICY:
      return "policy";
    default:
      return absl::StrCat("verdict ", verdict);
  }
}

std::string RoleName(v1::Role role) {
  return role == v1::ROLE_DESTINATION ? "destination" : "source";
}

bool ParsePolicy(absl::string_view text, v1::MigrationPolicy* policy) {
  for (auto candidate : {v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                         v1::MIGRATION_POLICY_POSTCOPY_ONLY,
                         v1::MIGRATION_POLICY_PRECOPY_ONLY}) {
    if (text != PolicyName(candidate)) continue;
    *policy = candidate;
    return true;
  }
  return false;
}

bool ParsePullOrder(absl::string_view text, v1::PullOrder* order) {
  for (int value = v1::PullOrder_MIN + 1; value <= v1::PullOrder_MAX; ++value) {
    const auto candidate = static_cast<v1::PullOrder>(value);
    if (text != PullOrderName(candidate)) continue;
    *order = candidate;
    return true;
  }
  return false;
}

bool IsValidId(absl::string_view id) {
  return !id.empty() && id.size() <= kIdBytesMax &&
         std::all_of(id.begin(), id.end(), IsIdByte);
}

std::string RandomId(absl::string_view prefix) {
  absl::BitGen random;
  return absl::StrFormat("%s-%08x",
                         prefix.substr(0, kIdBytesMax - kSuffixBytes),
                         absl::Uniform<uint32_t>(random));
}

bool HasEnded(v1::MigrationState state) {
  return state == v1::MIGRATION_STATE_COMPLETED ||
         state == v1::MIGRATION_STATE_CANCELLED ||
         state == v1::MIGRATION_STATE_FAILED;
}

bool IsHandedOver(v1::MigrationState state) {
  return state == v1::MIGRATION_STATE_POSTCOPY ||
         state == v1::MIGRATION_STATE_PAUSED ||
         state == v1::MIGRATION_STATE_RECOVERING ||
         state == v1::MIGRATION_STATE_COMPLETED;
}

}  // namespace postcopy
