// How states, policies and roles are spelled for people and scripts.
#ifndef CMD_POSTCOPYCTL_NAMES_H_
#define CMD_POSTCOPYCTL_NAMES_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"
#include "postcopy/v1/common.pb.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// Longest VM name, migration id or request id, in bytes.
inline constexpr size_t kIdBytesMax = 128;

// "PRECOPY"; "state 17" for one this program does not know.
std::string StateName(v1::MigrationState state);
// "precopy-then-postcopy"; as --policy takes it.
std::string PolicyName(v1::MigrationPolicy policy);
// "adaptive"; as --pull_order takes it. "" for UNSPECIFIED.
std::string PullOrderName(v1::PullOrder order);
// "dirty-log", "pagemap-scan", "unknown".
std::string DirtyTrackingName(v1::DirtyTrackingKind kind);
// "reading", "asking", "answering", "installing"; empty for a kind that this
// program does not know.
std::string FaultStageName(v1::FaultStageKind kind);
// "manual", "auto"; "" for UNSPECIFIED.
std::string ModeName(v1::SwitchOverMode mode);
// "wait", "converged", ...; "" for UNSPECIFIED.
std::string VerdictName(v1::SwitchOverVerdict verdict);
// "source", "destination".
std::string RoleName(v1::Role role);

// Reads what PolicyName() writes. False for anything else.
bool ParsePolicy(absl::string_view text, v1::MigrationPolicy* policy);

// The same for PullOrderName().
bool ParsePullOrder(absl::string_view text, v1::PullOrder* order);

// Whether `id` can name a VM, a migration or a request: 1 to kIdBytesMax bytes
// of [A-Za-z0-9._-].
bool IsValidId(absl::string_view id);

// `prefix`, a hyphen and eight random hexadecimal digits; `prefix` is cut so
// that the result is a valid id.
std::string RandomId(absl::string_view prefix);

// True for states that no migration ever leaves.
bool HasEnded(v1::MigrationState state);
// True if in `state` the guest belongs to the destination for good.
bool IsHandedOver(v1::MigrationState state);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_NAMES_H_
