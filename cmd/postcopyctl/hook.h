// Commands of the user's that stop a guest and let it run, for VMMs that do so
// by an API of their own.
#ifndef CMD_POSTCOPYCTL_HOOK_H_
#define CMD_POSTCOPYCTL_HOOK_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "postcopy/v1/common.pb.h"

namespace postcopy {

// How long a command may take: a guest that is stopped waits for it.
inline constexpr absl::Duration kHookTimeout = absl::Seconds(30);

enum class HookEvent { kPause, kResume };

// What a command is told, in its environment.
struct HookContext {
  HookEvent event = HookEvent::kPause;  // POSTCOPY_EVENT: pause, resume
  v1::Role side = v1::ROLE_SOURCE;      // POSTCOPY_SIDE: source, destination
  std::string vm_name;                  // POSTCOPY_VM
  std::string migration_id;             // POSTCOPY_MIGRATION_ID
  std::string source_address;           // POSTCOPY_SOURCE
  std::string destination_address;      // POSTCOPY_DESTINATION
};

// Runs `command` with /bin/sh -c, its stdin /dev/null and its stdout our
// stderr, and waits for its end; kills it, with what it has started in its
// process group, after `timeout`. INTERNAL if it ends with another code than 0.
// DEADLINE_EXCEEDED if it does not end.
absl::Status RunHook(const std::string& command, const HookContext& context,
                     absl::Duration timeout);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_HOOK_H_
